"""
How a student divides its dimensions
====================================

Eq. 2 keeps or drops each feature whole. Trained students share dimensions among features at a loss, and their floors
show it. This script compares measured students with the predictions of Eq. 2, water-filling and packed blocks. Nothing
is fitted, and the importances differ from those behind the library's curves.
"""

# %%
# Measure
# -------
# Train three students of each width on 25 features. Importances fall as the power −1.5 of the rank, and each feature is
# active in one sample of fourteen. This takes about ten seconds.

import matplotlib.pyplot as plt
import numpy as np

from geofloor import FloorPredictor
from geofloor.toy import SparseFeatures, summarize_sweep, toy_sweep

n_features, alpha = 25, 0.93
importances = np.arange(1, n_features + 1) ** -1.5
widths = [1, 2, 3, 4, 6, 8, 10, 12, 15]
sweep = toy_sweep(
    n_features, widths, alpha, teacher_widths=None, importance=1.5, n_seeds=3, n_eval_samples=65_536, device="cpu"
)
measured = summarize_sweep(sweep)

# %%
# Predict
# -------
# The argument ``allocation`` chooses how dimensions are divided. ``"auto"`` also gives bounds, taken from measured
# students.

moments = SparseFeatures(n_features, alpha).second_moments
predictors = {
    name: FloorPredictor(alpha, allocation=name).fit(importances, second_moments=moments)
    for name in ("cutoff", "waterfilling", "auto")
}
at = np.arange(1, 17)
floors, bounds = predictors["auto"].predict(at, return_bounds=True)
error = predictors["auto"].predict(widths) / measured.floor - 1
print(f"auto: median error {error.abs().median():.1%}, largest {error.abs().max():.1%}")
print("Eq. 2 / measured:", (predictors["cutoff"].predict(widths) / measured.floor).round(2).tolist())

# %%
# Floors and dimensions
# ---------------------
# Left: the floors, with a band between the bounds. Right: the dimensions of each feature in a student of width 4. The
# cut-off gives 1/g to each kept feature, water-filling gives more to important features, and blocks give whole
# dimensions to groups.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.fill_between(at, *bounds.T, color="C2", alpha=0.2, linewidth=0, label="bounds")
for (name, predictor), style in zip(predictors.items(), (":", "--", "-"), strict=True):
    left.plot(at, predictor.predict(at), style, color=f"C{list(predictors).index(name)}", label=name)
left.plot(measured.width, measured.floor, "ko", markersize=4, label="measured, mean of 3")
left.set(xlabel="width d", ylabel="floor", yscale="log", ylim=(measured.floor.min() / 3, None))
left.legend(frameon=False)
for number, (name, predictor) in enumerate(predictors.items()):
    right.step(
        np.arange(1, n_features + 1), predictor.allocate(4).capacities, where="mid", color=f"C{number}", label=name
    )
right.set(xlabel="feature, by importance", ylabel="dimensions c", title="a student of width 4")
right.legend(frameon=False)
plt.show()
