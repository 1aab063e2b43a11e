"""Forecasts from several laws at once, weighed by the runs and by priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import logsumexp, ndtr

from geofloor.forecasting._candidates import Curves, Known, candidates
from geofloor.forecasting._law import Law
from geofloor.forecasting._priors import FORM_ERRORS, RUN_ERRORS, Priors

_RANGE = 3.0  # octaves over which a law's errors stay alike, as in LossForecaster
_NEGLIGIBLE = 1e-4  # share of the largest weight below which a grid point is left out of forecasts
_FAR = 9.0  # standard deviations within which quantiles are searched
_N_HALVINGS = 60


class Noise(NamedTuple):
    """A form error and a run error, as shares of the loss."""

    form: float
    run: float


class Evidence:
    """Likelihood of the runs under each law, grid point and noise. It knows no prior of them.

    Parameters
    ----------
    widths, losses : ndarray of shape (n_runs,)
        The runs.
    known : Known
        What is known besides.
    added : ndarray of shape (n_runs,)
        Error of each run besides the run error, as a share of its loss.
    form_errors, run_errors : sequence of float
        The noise to try.

    Attributes
    ----------
    laws : dict of str to Candidate
        Laws by name.
    log_likelihoods : dict of str to ndarray of shape (n_form_errors, n_run_errors, n_points)
        Of the logarithms of the losses.
    """

    def __init__(
        self,
        widths: np.ndarray,
        losses: np.ndarray,
        known: Known,
        added: np.ndarray | None = None,
        form_errors: Sequence[float] = FORM_ERRORS,
        run_errors: Sequence[float] = RUN_ERRORS,
    ) -> None:
        self.widths, self.logs, self.known = widths, np.log(losses), known
        self.added = np.zeros(len(widths)) if added is None else added
        self.shape = len(form_errors), len(run_errors)
        self.noises = [Noise(form, run) for form in form_errors for run in run_errors]
        self.laws = candidates(float(widths.max()), float(self.logs.mean()), known)
        self._curves = {name: law.curves(widths) for name, law in self.laws.items()}
        self._factors = [self._factor(noise) for noise in self.noises]
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.laws}
        for factor in self._factors:
            for name in self.laws:
                found[name].append(self._solve(name, factor, slice(None))[0])
        self.log_likelihoods = {name: np.reshape(each, (*self.shape, -1)) for name, each in found.items()}

    def covariance(self, form: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the covariance of a law's errors between widths.

        They stay alike over octaves of the width, and of the distance from the teacher's width if it is known.
        """
        octaves = np.abs(np.log2(a)[:, np.newaxis] - np.log2(b))
        own = self.known.teacher_width
        if own is not None:
            octaves += np.abs(np.log2(own - a)[:, np.newaxis] - np.log2(own - b))
        return np.asarray(form**2 * np.exp(-octaves / _RANGE))

    def _factor(self, noise: Noise) -> tuple[np.ndarray, bool]:
        covariance = self.covariance(noise.form, self.widths, self.widths)
        return cho_factor(covariance + np.diag(noise.run**2 + self.added**2), lower=True)

    def _solve(
        self, name: str, factor: tuple[np.ndarray, bool], kept: slice | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return log likelihoods, expected shifts along the directions, and their covariance, by grid point."""
        means, directions = self._curves[name]
        lower = factor[0]
        left = solve_triangular(lower, (self.logs - means[kept]).T, lower=True).T  # (n_points, n_runs)
        columns = np.swapaxes(directions[kept], 0, 1)
        slopes = solve_triangular(lower, columns.reshape(len(self.widths), -1), lower=True).reshape(columns.shape)
        slopes = np.swapaxes(slopes, 0, 1)  # (n_points, n_runs, n_directions)
        information = np.eye(directions.shape[2]) + np.swapaxes(slopes, 1, 2) @ slopes
        right = np.einsum("crp,cr->cp", slopes, left)
        spread = np.linalg.inv(information)
        shifts = np.einsum("cpq,cq->cp", spread, right)
        squares = np.square(left).sum(axis=1) - (right * shifts).sum(axis=1)
        volume = np.log(np.diag(lower)).sum() + 0.5 * np.linalg.slogdet(information)[1]
        return -0.5 * squares - volume - 0.5 * left.shape[1] * np.log(2.0 * np.pi), shifts, spread

    def forecast(
        self, name: str, index: int, kept: np.ndarray, widths: np.ndarray, new: Curves
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the logarithm of a new run's loss, (n_points, n_widths), with one noise."""
        noise, factor = self.noises[index], self._factors[index]
        _, shifts, spread = self._solve(name, factor, kept)
        seen = self._curves[name]
        between = self.covariance(noise.form, self.widths, widths)  # (n_runs, n_widths)
        weights = cho_solve(factor, between)
        drift = new.directions[kept] - np.einsum("rw,crp->cwp", weights, seen.directions[kept])
        mean = new.means[kept] + (self.logs - seen.means[kept]) @ weights + np.einsum("cwp,cp->cw", drift, shifts)
        alone = noise.form**2 + noise.run**2 - (between * weights).sum(axis=0)
        return mean, np.maximum(alone + np.einsum("cwp,cpq,cwq->cw", drift, spread, drift), np.finfo(float).tiny)

    def shifts(self, name: str, index: int) -> np.ndarray:
        """Return the expected shift of each grid point along its directions, with one noise."""
        return self._solve(name, self._factors[index], slice(None))[1]


class Mixture:
    """Posterior over laws, their parameters and the noise.

    Parameters
    ----------
    evidence : Evidence
        Likelihood of the runs.
    priors : Priors
        Prior of the laws and their parameters.
    students : {"principal", "random"} or None
        Kind of start. With None both kinds are equally probable.
    free : tuple of bool
        Whether form error and run error of the evidence are the grids of the priors. Otherwise each has one value.

    Attributes
    ----------
    weights : dict of str to ndarray of shape (n_form_errors, n_run_errors, n_points)
        Posterior probabilities; their sum over all laws is one.
    log_evidence : float
        Logarithm of the probability density of the runs.
    """

    def __init__(
        self, evidence: Evidence, priors: Priors, students: str | None = None, *, free: tuple[bool, bool] = (True, True)
    ) -> None:
        self.evidence = evidence
        kinds = ("principal", "random") if students is None else (students,)
        logs = {
            name: logsumexp([priors.log_weights(kind, evidence, name, free) for kind in kinds], axis=0)
            - np.log(len(kinds))
            + evidence.log_likelihoods[name]
            for name in evidence.laws
        }
        self.log_evidence = float(logsumexp([logsumexp(each) for each in logs.values()]))
        self.weights = {name: np.exp(each - self.log_evidence) for name, each in logs.items()}

    @property
    def probabilities(self) -> dict[str, float]:
        """Posterior probability of each law."""
        return {name: float(each.sum()) for name, each in self.weights.items()}

    def errors(self) -> Noise:
        """Return form and run error, the square roots of their expected squares."""
        each = np.sum([weights.sum(axis=2) for weights in self.weights.values()], axis=0).ravel()
        squares = np.square(self.evidence.noises)
        return Noise(*(float(value) for value in np.sqrt(each @ squares)))

    def chosen(self) -> tuple[Law, dict[str, float]]:
        """Return the most probable law with its expected parameters."""
        probabilities = self.probabilities
        name = max(probabilities, key=probabilities.__getitem__)
        weights = self.weights[name].reshape(len(self.evidence.noises), -1) / probabilities[name]
        total = weights.sum(axis=0)
        shifts = sum(each[:, np.newaxis] * self.evidence.shifts(name, i) for i, each in enumerate(weights))
        safe = np.where(total > 0.0, total, 1.0)
        return self.evidence.laws[name].chosen(shifts / safe[:, np.newaxis], total)

    def components(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the forecast as normal components of the logarithm of the loss.

        Returns
        -------
        weights : ndarray of shape (n_components,)
            Their sum is one.
        means, deviations : ndarray of shape (n_components, n_widths)
            One component per law, branch and form error.
        """
        largest = max(float(each.max()) for each in self.weights.values())
        n_run = self.evidence.shape[1]
        found: dict[tuple[str, int, int], list[tuple[float, np.ndarray, np.ndarray]]] = {}
        for name, weights in self.weights.items():
            law = self.evidence.laws[name]
            new = law.curves(widths)
            for index, each in enumerate(weights.reshape(len(self.evidence.noises), -1)):
                kept = np.flatnonzero(each > _NEGLIGIBLE * largest)
                if not len(kept):
                    continue
                means, variances = self.evidence.forecast(name, index, kept, widths, new)
                for branch in np.unique(law.branches[kept]):
                    of_branch = law.branches[kept] == branch
                    share, mean = each[kept][of_branch], means[of_branch]
                    total = float(share.sum())
                    center = share @ mean / total
                    spread = share @ (variances[of_branch] + np.square(mean - center)) / total
                    found.setdefault((name, branch, index // n_run), []).append((total, center, spread))
        rows = []
        for parts in found.values():
            sums, centers, spreads = (np.array(part) for part in zip(*parts, strict=True))
            share = sums / sums.sum()
            center = share @ centers
            rows.append((sums.sum(), center, np.sqrt(share @ (spreads + np.square(centers - center)))))
        sums, means, deviations = (np.array(part) for part in zip(*rows, strict=True))
        return sums / sums.sum(), means, deviations

    def quantiles(self, widths: np.ndarray, probabilities: Sequence[float]) -> np.ndarray:
        """Return quantiles of the logarithm of a new run's loss, (n_probabilities, n_widths)."""
        weights, means, deviations = self.components(widths)
        lowest, highest = (means - _FAR * deviations).min(axis=0), (means + _FAR * deviations).max(axis=0)
        found = []
        for probability in probabilities:
            low, high = lowest, highest
            for _ in range(_N_HALVINGS):
                middle = 0.5 * (low + high)
                below = weights @ ndtr((middle - means) / deviations) < probability
                low, high = np.where(below, middle, low), np.where(below, high, middle)
            found.append(0.5 * (low + high))
        return np.array(found)
