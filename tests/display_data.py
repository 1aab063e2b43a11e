"""Tables that the tests of displays draw."""

import numpy as np
import pandas as pd

from geofloor import FloorPredictor

# The paper's Tables 2 and 3.
PAPER_WIDTHS = np.array([128, 256, 512, 768, 1024])
PAPER_FLOORS = np.array([0.0795, 0.0400, 0.0111, 0.0016, 0.0001])
PAPER_LOSSES = np.array([1.320, 1.008, 0.733, 0.652, 0.586])

# Distilled students: width and seed, floor, evaluated steps, distinct widths.
STUDENTS = ((8, 0), (16, 0), (16, 1), (32, 0))
FLOORS = (0.8, 0.5, 0.49, 0.1)
STEPS = np.array([0, 50, 100])
WIDTHS = np.array([8, 16, 32])

# Toy sweep.
N_FEATURES, ALPHAS, TEACHERS = (10, 40), (0.8, 0.9, 0.99), (3, 5)


def sweep():
    """Make measured floors twice those of Eq. 2, never zero, and the same for teachers of all widths."""
    rows = []
    for n_features in N_FEATURES:
        for alpha in ALPHAS:
            importances, moments = 1 / np.arange(1, n_features + 1), np.full(n_features, (1 - alpha) / 3)
            cutoff = FloorPredictor(alpha=alpha).fit(importances, second_moments=moments)
            naive = FloorPredictor(alpha=alpha, capacity=lambda _: 1.0).fit(importances, second_moments=moments)
            for teacher_width in TEACHERS:
                widths = np.arange(1, teacher_width + 1)
                floors = 2 * cutoff.predict(widths) + 0.01 * (1 - alpha) / widths
                columns = {"Eq. 2": cutoff.predict(widths), "naive": naive.predict(widths)}
                rows.append(
                    pd.DataFrame(
                        {
                            "n_features": n_features,
                            "alpha": alpha,
                            "teacher_width": teacher_width,
                            "width": widths,
                            "floor": floors,
                            "floor_std": 0.1 * floors,
                            "total": importances @ moments,
                            **columns,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def chosen(summary, n_features, alpha, teacher_width):
    """Select the points of one configuration and teacher width."""
    return summary.query("n_features == @n_features and alpha == @alpha and teacher_width == @teacher_width")


def texts(legend):
    """Return the texts of a legend."""
    return [text.get_text() for text in legend.get_texts()]
