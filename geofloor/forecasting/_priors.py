"""Priors of the automatic choice of a law, as `benchmarks/calibration.py --fit-priors` prints them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

# Noise that is tried, as shares of the loss.
FORM_ERRORS = (0.01, 0.025, 0.05, 0.1, 0.2)
RUN_ERRORS = (0.003, 0.012, 0.04, 0.12)
STUDENTS = ("principal", "random")


class Priors(NamedTuple):
    """Priors of laws, their parameters and the noise."""

    odds: dict[str, dict[str, float]]  # of each law, by kind of start; only ratios count
    coordinates: dict[str, dict[str, list[list[float]]]]  # mean and deviation of each coordinate of a law, by kind
    run_errors: dict[str, list[float]]  # probability of each run error, by kind
    form_errors: dict[str, list[float]]  # probability of each form error, by law

    def log_weights(self, kind: str, evidence: Any, name: str, free: tuple[bool, bool]) -> np.ndarray:
        """Return log probabilities of noise and grid points of a law, (n_form_errors, n_run_errors, n_points).

        Parameters
        ----------
        kind : {"principal", "random"}
            Kind of start.
        evidence : Evidence
            Its laws share the prior probability of one.
        name : str
            One of its laws.
        free : tuple of bool
            Whether form error and run error are the grids of this module. Otherwise each has one value.
        """
        odds = self.odds[kind]
        law = np.log(odds[name] / sum(odds[each] for each in evidence.laws))
        points = evidence.laws[name].coordinates
        spread = np.asarray(self.coordinates[kind][name], dtype=float)
        logs = -0.5 * np.square((points - spread[:, 0]) / spread[:, 1]).sum(axis=1)
        logs -= logsumexp(logs)
        form = np.log(self.form_errors[name]) if free[0] else np.zeros(1)
        run = np.log(self.run_errors[kind]) if free[1] else np.zeros(1)
        return np.asarray(law + form[:, np.newaxis, np.newaxis] + run[:, np.newaxis] + logs)


@cache
def load_priors() -> Priors:
    """Load the priors that come with the library."""
    return Priors(**json.loads(files("geofloor.forecasting").joinpath("priors.json").read_text(encoding="utf-8")))
