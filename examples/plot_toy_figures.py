"""
The paper's toy sweep, figure by figure
=======================================

Figures 2, 3 and 9 to 14 of Sarkar and Deka, *Geometric Limits of Knowledge Distillation*
(`arXiv:2604.04037v2 <https://arxiv.org/abs/2604.04037v2>`_), drawn from the full sweep of 48 configurations and 20
seeds. ``python benchmarks/full_toy_sweep.py`` wrote its results to ``benchmarks/results``. The figures do not confirm
the paper's claims; :doc:`/findings/toy_sweep` compares claim and measurement.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from geofloor.displays import (
    AccuracyDisplay,
    CollapseDisplay,
    ErrorDisplay,
    FloorGridDisplay,
    PredictionDisplay,
    SparsityDisplay,
    SpectrumDisplay,
    TrainingCurvesDisplay,
)

# The gallery runs scripts in their own folder, without a file name.
FOLDER = Path(__file__).parent if "__file__" in globals() else Path.cwd()
RESULTS = FOLDER.parent / "benchmarks" / "results"
summary = pd.read_csv(RESULTS / "toy_sweep_data.csv", comment="#")
distilled = pd.read_csv(RESULTS / "toy_sweep_teacher.csv", comment="#")
curves = pd.read_csv(RESULTS / "toy_training_curves.csv", comment="#")
nonzero = summary[summary["Eq. 2"] > 0]
print(f"{len(summary)} points, {len(nonzero)} with a prediction above zero")

# %%
# Figure 2: floor over width
# --------------------------
# These students were trained on the data, so that their floors do not depend on the teacher. Eq. 2 lies below every
# floor, and the floors have no step at d*.
FloorGridDisplay.from_summary(summary)
plt.show()

# %%
# These students learned the output of a trained teacher, and are measured against that output. Each teacher's curve
# falls to zero at its own width, independently of d*, because a student of that width can be a copy.
FloorGridDisplay.from_summary(distilled)
plt.show()

# %%
# Figure 3: predicted over measured floors
# ----------------------------------------
# At the 140 points with Eq. 2 above zero, the exact thresholds of compressed sensing predict better than Eq. 1. All
# predictors order the floors well, and none gives their values.
PredictionDisplay.from_summary(nonzero, predicted=["Eq. 2", "exact, non-negative", "naive", "naive, variance"])
plt.show()

# %%
# Against the teacher's output the order is lost too: the floors depend on the teacher's width, and these formulas do
# not. Students as wide as their teacher have a floor close to zero.
PredictionDisplay.from_summary(distilled[distilled["Eq. 2"] > 0], predicted=["Eq. 2", "naive"])
plt.show()

# %%
# Figure 9: the effect of sparsity
# --------------------------------
# Floors fall with sparsity, mostly because the loss of answering 0 falls: it is proportional to 1 − α, and 20 times
# lower at α = 0.99 than at 0.8.
SparsityDisplay.from_summary(summary, teacher_width=5)
plt.show()

# %%
# Figure 10: errors by sparsity
# -----------------------------
# These are signed errors at the 140 points. Only four points have α = 0.99: one student, with four teachers.
ErrorDisplay.from_summary(nonzero, predicted=["Eq. 2", "exact, non-negative", "naive, variance"])
plt.show()

# %%
# Figure 11: accuracy by configuration
# ------------------------------------
# The accuracy is 100% minus the median absolute error of Eq. 2, in percent of the floor. The paper reports over 93%
# nearly everywhere and 100% at α = 0.99.
AccuracyDisplay.from_summary(nonzero)
plt.show()

# %%
# The same with the points where Eq. 2 predicts zero; their accuracy is 0.
AccuracyDisplay.from_summary(summary[summary.floor > 1e-9])
plt.show()

# %%
# Figure 12: importances
# ----------------------
# The importances are 1 over the rank, drawn on linear and logarithmic axes.
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
for ax, scale in zip(axes, ("linear", "log"), strict=True):
    SpectrumDisplay.from_importances(1 / np.arange(1, 41), fit_tail=False, scale=scale, ax=ax)
plt.show()

# %%
# Figure 13: floors over d/d*
# ---------------------------
# If d* were a phase transition, all curves would coincide and reach zero at 1.
CollapseDisplay.from_summary(summary)
plt.show()

# %%
# Figure 14: training curves
# --------------------------
# The learning rate of Adam is 0.001 and each step takes 1,024 samples, as in the original notebook.
TrainingCurvesDisplay(history=curves[curves.learning_rate == 1e-3], predicted="Eq. 2").plot()
plt.show()
