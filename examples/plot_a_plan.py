"""
Plan a distillation
===================

How low can a student of a given width get, and which width reaches a target? A plan goes from a teacher and text to
the answer. Here it takes the language model that comes with the library, and fewer tokens and steps than by default,
so that it ends within a minute or two.
"""

# %%
# The cheapest stage comes first: a bound on every student, from the teacher alone. Then two quick students give a
# forecast. ``checkpoint_dir`` would keep all results, and the same call would continue there.
from geofloor import plan_distillation
from geofloor.datasets import load_local_corpus, load_teacher

texts = (document.text for document in load_local_corpus("test"))
plan = plan_distillation(
    load_teacher().path, texts, target_kl=0.5, budgets=(40, 80), n_tokens=30_000, length=128, features=False, verbose=1
)

# %%
# ``print(plan)`` shows what was measured and what to do, and ``plan.report("report.html")`` writes it as a page. In a
# notebook, the plan itself is that page.
print(plan)

# %%
# The forecast with its interval, the two students behind it, the target, and the region that no student gets into:
plan.plot()

# %%
# Ask about any width and target:
print(plan.decide(48, 0.4))

# %%
# One more student, trained elsewhere in the same way, makes the answer surer:
next_run = plan.next_run(48)
print(next_run)
