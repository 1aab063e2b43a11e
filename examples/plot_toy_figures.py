"""
The paper's toy sweep, figure by figure
=======================================

Figures 2, 3 and 9 to 14 of Sarkar and Deka, *Geometric Limits of Knowledge Distillation*
(`arXiv:2604.04037v2 <https://arxiv.org/abs/2604.04037v2>`_), drawn from the full sweep of 48 configurations
and 20 seeds as ``python benchmarks/full_toy_sweep.py`` left it in ``benchmarks/results``. What they show is
not what the paper says; :doc:`/findings/toy_sweep` puts both side by side.
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

# Galleries run scripts in their own folder, without a file name.
FOLDER = Path(__file__).parent if "__file__" in globals() else Path.cwd()
RESULTS = FOLDER.parent / "benchmarks" / "results"
summary = pd.read_csv(RESULTS / "toy_sweep_data.csv", comment="#")
distilled = pd.read_csv(RESULTS / "toy_sweep_teacher.csv", comment="#")
curves = pd.read_csv(RESULTS / "toy_training_curves.csv", comment="#")
nonzero = summary[summary["Eq. 2"] > 0]
print(f"{len(summary)} points, of which {len(nonzero)} have a prediction above zero")

# %%
# Figure 2: floor over width
# --------------------------
# Students trained on the data: their floors do not depend on the teacher. Eq. 2 is below every floor, and
# nothing happens at d*.
FloorGridDisplay.from_summary(summary)
plt.show()

# %%
# The same for students that learn the output of a trained teacher, measured against that output. Each teacher's
# curve falls to zero at its own width, whatever d* is: there a student can be a copy.
FloorGridDisplay.from_summary(distilled)
plt.show()

# %%
# Figure 3: predicted over measured floors
# ----------------------------------------
# The 140 points where Eq. 2 is not zero. The exact thresholds of compressed sensing do better than Eq. 1; all
# orderings are good, and none of the values is.
PredictionDisplay.from_summary(nonzero, predicted=["Eq. 2", "exact, non-negative", "naive", "naive, variance"])
plt.show()

# %%
# Against the teacher's output the order is lost as well, since the teacher's width matters, and no formula here
# knows it. Students as wide as their teacher have a floor of zero or nearly so.
PredictionDisplay.from_summary(distilled[distilled["Eq. 2"] > 0], predicted=["Eq. 2", "naive"])
plt.show()

# %%
# Figure 9: the effect of sparsity
# --------------------------------
# Floors fall with sparsity, above all because sparser features have less to lose: the loss of answering 0 is
# proportional to 1 − α, and falls by 20 from α = 0.8 to 0.99.
SparsityDisplay.from_summary(summary, teacher_width=5)
plt.show()

# %%
# Figure 10: errors by sparsity
# -----------------------------
# Signed errors at the 140 points. At α = 0.99 four of them are left, the same student with four teachers.
ErrorDisplay.from_summary(nonzero, predicted=["Eq. 2", "exact, non-negative", "naive, variance"])
plt.show()

# %%
# Figure 11: accuracy by configuration
# ------------------------------------
# 100% minus the median absolute percentage error of Eq. 2. The paper has over 93% nearly everywhere and 100% at
# α = 0.99; where Eq. 2 predicts zero, the accuracy of that prediction is 0.
AccuracyDisplay.from_summary(nonzero)
plt.show()

# %%
AccuracyDisplay.from_summary(summary[summary.floor > 1e-9])
plt.show()

# %%
# Figure 12: importances
# ----------------------
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
for ax, scale in zip(axes, ("linear", "log"), strict=True):
    SpectrumDisplay.from_importances(1 / np.arange(1, 41), fit_tail=False, scale=scale, ax=ax)
plt.show()

# %%
# Figure 13: floors over d/d*
# ---------------------------
# If d* were a phase transition, the curves would fall on one another and end at 1.
CollapseDisplay.from_summary(summary)
plt.show()

# %%
# Figure 14: training curves
# --------------------------
# With Adam's step size of 0.001 and 1,024 samples a step, as in the original notebook.
TrainingCurvesDisplay(history=curves[curves.learning_rate == 1e-3], predicted="Eq. 2").plot()
plt.show()
