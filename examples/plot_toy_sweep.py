"""
Toy models of superposition
===========================

Measure the lowest loss of models with fewer dimensions than features. The models are small enough to be trained to
convergence, hundreds at once. This script trains part of the paper's sweep, in under two minutes on two cores;
``toy_sweep()`` without arguments trains all of it. The numbers in the documentation come from
``python benchmarks/full_toy_sweep.py``.
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
# Train one model with five dimensions on twenty features, each active in one sample of ten. It keeps more than five
# features, at a price: features that share dimensions interfere. Dropped features cause most of the loss, and
# interference causes the rest.
features = SparseFeatures(20, alpha=0.9)
model = ToyModel(5, n_init=5, random_state=0).fit(features)
print(f"floor {model.floor_:.5f} +- {model.standard_error_:.5f}, five starts: {model.floors_.round(5)}")
print(f"{model.n_kept_} features kept in {model.width} dimensions")
print(f"of the loss, dropped features {model.dropped_share_:.0%}, interference {model.interference_share_:.0%}")

# %%
# The squared norm of a feature is about 1 if the model keeps it, and about 0 if it drops it. The fractional capacity is
# the share of a dimension that belongs to the feature alone.
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
# Train students of all widths up to 10, for two numbers of features, three sparsities and five seeds. Each model is
# trained until its loss stops falling, and its floor is measured on held-out samples.
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
# Draw measured floors beside Eq. 2. The dotted line is the critical width d*, where Eq. 2 reaches a floor of zero. The
# measured floor crosses it smoothly, without a step.
FloorGridDisplay.from_summary(summary)
plt.show()

# %%
# Above zero, Eq. 2 orders the floors well and lies below all of them: a lower bound, but far from tight. One feature
# per dimension ("naive") gives an upper bound.
nonzero = summary[summary["Eq. 2"] > 0]
show(agreement_table(nonzero.floor, {"Eq. 2": nonzero["Eq. 2"], "naive": nonzero["naive"]}))
PredictionDisplay.from_summary(nonzero)
plt.show()
