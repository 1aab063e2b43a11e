"""
Toy models of superposition
===========================

How low can a model get that has fewer dimensions than features? Here the truth is known, since the models
are small enough to be trained to the end, hundreds at once. This script trains part of the paper's sweep, in
under two minutes on two cores; ``toy_sweep()`` without arguments trains all of it, and
``python benchmarks/full_toy_sweep.py`` measures what the documentation reports.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

from geofloor import FloorPredictor, ToyModel
from geofloor.displays import FloorGridDisplay, PredictionDisplay
from geofloor.forecasting import agreement_table
from geofloor.toy import SparseFeatures, predict_sweep, summarize_sweep, toy_sweep


def show(table):
    print(table.to_string(index=False, float_format="{:.4g}".format))


# %%
# One model
# ---------
# Twenty features, each active in one sample of ten, in five dimensions. The model keeps more than five of
# them, at a price: features that share dimensions disturb each other. Most of what it loses is still due to
# the features that it drops, and the rest is this interference.
features = SparseFeatures(20, alpha=0.9)
model = ToyModel(5, n_init=5, random_state=0).fit(features)
print(f"floor {model.floor_:.5f} +- {model.standard_error_:.5f}, five starts: {model.floors_.round(5)}")
print(f"{model.n_kept_} features kept in {model.width} dimensions")
print(f"of the loss, dropped features {model.dropped_share_:.0%}, interference {model.interference_share_:.0%}")

# %%
# What every feature has of the model: its squared norm is about 1 if it is kept and about 0 if it is dropped;
# its fractional capacity is the share of a dimension that it has to itself.
fig, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ranks = np.arange(1, 21)
ax.bar(ranks, model.squared_norms_, color="#b9d3e8", label="squared norm")
ax.plot(ranks, model.fractional_capacities_, "o", color="#D55E00", label="fractional capacity")
ax.set(xlabel="feature, most important first", xticks=ranks[::3])
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", loc="upper right", bbox_to_anchor=(1.0, 1.12), ncols=2)
plt.show()

# %%
# A sweep
# -------
# Two numbers of features, three sparsities, all widths up to a teacher's, five seeds. The floor is measured on
# samples that no model has seen, and every model is trained until its loss has stopped falling.
sweep = toy_sweep((10, 40), alphas=(0.8, 0.9, 0.99), teacher_widths=[10], n_seeds=5, n_jobs=2)
print(f"{len(sweep)} models, {sweep.n_steps.mean():.0f} steps on average, converged: {sweep.converged.mean():.0%}")


def eq_2(n_features, alpha):
    second_moments = SparseFeatures(n_features, alpha).second_moments
    return FloorPredictor(alpha).fit(1 / np.arange(1, n_features + 1), second_moments=second_moments)


def naive(n_features, alpha):
    second_moments = SparseFeatures(n_features, alpha).second_moments
    one_each = FloorPredictor(alpha, capacity=np.ones_like)
    return one_each.fit(1 / np.arange(1, n_features + 1), second_moments=second_moments)


summary = predict_sweep(summarize_sweep(sweep), {"Eq. 2": eq_2, "naive": naive})
show(summary[summary.n_features == 40][["alpha", "width", "floor", "floor_std", "kept", "Eq. 2", "naive"]])

# %%
# Measured floors and Eq. 2. The dotted line is the critical width d*, from which on Eq. 2 predicts a floor of
# zero. The measured floor passes it as if nothing were there.
FloorGridDisplay.from_summary(summary)
plt.show()

# %%
# Where Eq. 2 is not zero, it orders the floors well, and lies below every one of them: a lower bound, and far
# from a tight one. Taking one feature for each dimension gives an upper bound.
nonzero = summary[summary["Eq. 2"] > 0]
show(agreement_table(nonzero.floor, {"Eq. 2": nonzero["Eq. 2"], "naive": nonzero["naive"]}))
PredictionDisplay.from_summary(nonzero)
plt.show()
