"""Curves that the automatic choice of a law weighs: one class per law, each a grid over the law's parameters.

A grid point is a Gaussian in the logarithm of the loss: a mean curve, and directions in which it varies. Directions are
scaled to a standard deviation of one. A parameter that is continuous has a direction half a grid step wide, so that a
coarse grid leaves no gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from geofloor.forecasting._law import Law
from geofloor.forecasting._laws import (
    AboveBottleneck,
    Anchored,
    AnchoredBothEnds,
    EndsAtTeacher,
    Exponential,
    PowerOfWidth,
    PowerOfWidthAboveBaseline,
)

_CELL = 0.6  # standard deviation of a direction, in grid steps
_LEVEL = 1.5  # prior standard deviation of the logarithm of the loss at the widest run
_CLOSEST = 1e-4  # least share of log(1 + D) that is left below a teacher's width of a grid
_SHARES = np.array([0.1, 0.3, 0.5, 0.7, 0.85, 0.95])  # of a baseline in the loss of the widest run
_OWN_WIDTHS = 1.0 + np.geomspace(0.03, 2.5, 11)  # of an unknown teacher, in widths of the widest run
_EXPONENTS = np.arange(0.8, 1.61, 0.1)  # m of the law above the bottleneck
_PLACES = np.array([0.15, 0.5, 0.85])  # of the bottleneck between its bounds, as a share of their logarithm
_COEFFICIENT = 0.5, 0.2  # k of the law above the bottleneck: mean and standard deviation


class Curves(NamedTuple):
    """Curves of all grid points of a law, at given widths."""

    means: np.ndarray  # (n_points, n_widths) logarithm of the loss
    directions: np.ndarray  # (n_points, n_widths, n_directions)


class Known(NamedTuple):
    """Knowledge of the teacher, beside the runs."""

    bound: Any = None
    zero_width_loss: float | None = None
    teacher_width: float | None = None


class Candidate:
    """Base class: a law over a grid of its parameters.

    Attributes
    ----------
    coordinates : ndarray of shape (n_points, n_coordinates)
        Grid points, in the coordinates of which the prior is normal: logarithms of slopes and exponents.
    branches : ndarray of shape (n_points,)
        Number of each point's branch. Points of one branch forecast alike, and are taken together.
    """

    coordinates: np.ndarray

    @property
    def branches(self) -> np.ndarray:
        return np.zeros(len(self.coordinates), dtype=int)

    def curves(self, widths: np.ndarray) -> Curves:
        """Return the curves at widths above 0 and below a known end."""
        raise NotImplementedError

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        """Return the law with its parameters.

        Parameters
        ----------
        shifts : ndarray of shape (n_points, n_directions)
            Expected displacement of each grid point along its directions.
        weights : ndarray of shape (n_points,)
            Posterior probabilities of the grid points, with a sum of one.
        """
        raise NotImplementedError


def _grid(low: float, high: float, number: int) -> tuple[np.ndarray, float]:
    """Return logarithms in even steps, and the standard deviation of a direction as a share of the value."""
    logs = np.linspace(np.log(low), np.log(high), number)
    return logs, _CELL * float(logs[1] - logs[0])


class _Free(Candidate):
    """Law with a free scale: one slope, and perhaps a second number that only the grid holds."""

    low, high, number = 0.04, 10.0, 19
    second = np.array([np.nan])

    def __init__(self, widest: float, level: float, known: Known) -> None:
        self.widest, self.level = widest, level
        logs, self._cell = _grid(self.low, self.high, self.number)
        self.coordinates = np.repeat(logs, len(self.second))[:, np.newaxis]
        self._slopes = np.exp(self.coordinates)
        self._seconds = np.tile(self.second, len(logs))[:, np.newaxis]

    def shape(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithm of the loss over that of the widest run, and its derivative by the log slope."""
        raise NotImplementedError

    def curves(self, widths: np.ndarray) -> Curves:
        shape, derivative = np.broadcast_arrays(*self.shape(widths))
        return Curves(self.level + shape, np.stack([np.full_like(shape, _LEVEL), self._cell * derivative], axis=2))

    def _means(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
        """Return the expected log loss of the widest run, slope and second number."""
        level = self.level + _LEVEL * weights @ shifts[:, 0]
        slope = weights @ (self._slopes[:, 0] * np.exp(self._cell * shifts[:, 1]))
        return float(level), float(slope), float(weights @ self._seconds[:, 0])


class Power(_Free):
    """`PowerOfWidth`; the slope is its exponent."""

    def shape(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = -self._slopes * np.log(widths / self.widest)
        return shape, shape

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        level, slope, _ = self._means(shifts, weights)
        return PowerOfWidth(), {"exponent": slope, "scale": _exp(level + slope * np.log(self.widest))}


class PowerAboveBaseline(_Free):
    """`PowerOfWidthAboveBaseline`; the second number is the share of the baseline in the loss of the widest run."""

    second = _SHARES

    def shape(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = -self._slopes * np.log(widths / self.widest)
        falling = (1.0 - self._seconds) * np.exp(power)
        total = falling + self._seconds
        return np.log(total), power * falling / total

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        level, slope, share = self._means(shifts, weights)
        scale = _exp(level + slope * np.log(self.widest)) * (1.0 - share)
        return PowerOfWidthAboveBaseline(), {"exponent": slope, "scale": scale, "baseline": share * _exp(level)}


class Decay(_Free):
    """`Exponential`; the slope is its decay over the width of the widest run."""

    def shape(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = -self._slopes * (widths / self.widest - 1.0)
        return shape, shape

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        level, slope, _ = self._means(shifts, weights)
        return Exponential(), {"decay": slope / self.widest, "scale": _exp(level + slope)}


class ToTeacher(_Free):
    """`EndsAtTeacher`; the slope is its exponent, the second number the teacher's width if it is unknown."""

    low, high, number = 0.1, 4.0, 11

    @property
    def branches(self) -> np.ndarray:
        # Near one teacher's width and far from another the logarithm of the loss differs by a lot.
        return np.tile(np.arange(len(self.second)), self.number)

    def __init__(self, widest: float, level: float, known: Known) -> None:
        own = known.teacher_width
        self.second = widest * _OWN_WIDTHS if own is None else np.array([own])
        super().__init__(widest, level, known)

    def shape(self, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = self._slopes * (self._left(widths) - self._left(np.array([self.widest])))
        return shape, shape

    def _left(self, widths: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(1.0 - np.log1p(widths) / np.log1p(self._seconds), _CLOSEST))

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        level, slope, own = self._means(shifts, weights)
        left = np.log(1.0 - np.log1p(self.widest) / np.log1p(own))
        return EndsAtTeacher(own), {"exponent": slope, "scale": _exp(level - slope * left)}


class _FromZero(Candidate):
    """Law that starts from the known loss at width 0 and has two slopes."""

    first: tuple[float, float, int]
    second = 0.02, 8.0, 12

    def __init__(self, widest: float, level: float, known: Known) -> None:
        assert known.zero_width_loss is not None
        self.widest, self.known = widest, known
        (one, one_cell), (two, two_cell) = _grid(*self.first), _grid(*self.second)
        self.coordinates = np.stack(np.meshgrid(one, two, indexing="ij"), axis=-1).reshape(-1, 2)
        self._cells = np.array([one_cell, two_cell])
        self._zero = float(np.log(known.zero_width_loss))

    def columns(self, widths: np.ndarray) -> np.ndarray:
        """Return what the two slopes multiply, (n_widths, 2)."""
        raise NotImplementedError

    def curves(self, widths: np.ndarray) -> Curves:
        parts = np.exp(self.coordinates)[:, np.newaxis, :] * self.columns(widths)
        return Curves(self._zero + parts.sum(axis=2), self._cells * parts)

    def _slopes(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        one, two = weights @ np.exp(self.coordinates + self._cells * shifts)
        return float(one), float(two / self.widest)


class FromZero(_FromZero):
    """`Anchored`; its slopes are the exponent, and the decay over the width of the widest run."""

    first = 0.01, 2.0, 11

    def columns(self, widths: np.ndarray) -> np.ndarray:
        return np.column_stack([-np.log1p(widths), -widths / self.widest])

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        exponent, decay = self._slopes(shifts, weights)
        return Anchored(float(np.exp(self._zero))), {"decay": decay, "exponent": exponent}


class FromZeroToTeacher(_FromZero):
    """`AnchoredBothEnds`; its slopes are the exponent, and the decay over the width of the widest run."""

    first = 0.1, 4.0, 11

    def columns(self, widths: np.ndarray) -> np.ndarray:
        assert self.known.teacher_width is not None
        left = np.log1p(-np.log1p(widths) / np.log1p(self.known.teacher_width))
        return np.column_stack([left, -widths / self.widest])

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        assert self.known.teacher_width is not None
        exponent, decay = self._slopes(shifts, weights)
        law = AnchoredBothEnds(float(np.exp(self._zero)), self.known.teacher_width)
        return law, {"decay": decay, "exponent": exponent}


class AboveBound(Candidate):
    """`AboveBottleneck`; the grid holds its exponent and the place of the bottleneck between its bounds."""

    def __init__(self, widest: float, level: float, known: Known) -> None:
        self.bound = known.bound
        self._exponents, self._places = (
            each.reshape(-1, 1) for each in np.meshgrid(_EXPONENTS, _PLACES, indexing="ij")
        )
        self.coordinates = self._exponents

    def curves(self, widths: np.ndarray) -> Curves:
        zero, at = self._between(np.zeros(1)), self._between(widths)
        reduction = np.maximum(zero - at, np.finfo(float).tiny)
        power = reduction**self._exponents
        mean, deviation = _COEFFICIENT
        cell = _CELL * (_EXPONENTS[1] - _EXPONENTS[0])
        # Along the coefficient, the exponent, and the sampling error of the bound, common to all widths.
        directions = [
            -deviation * power,
            -cell * mean * power * np.log(reduction),
            mean * self._exponents * power / reduction * self._sampling(widths),
        ]
        return Curves(zero - mean * power, np.stack(directions, axis=2))

    def _between(self, widths: np.ndarray) -> np.ndarray:
        low, high = np.log(np.maximum(self.bound.predict(widths, return_bounds=True)[1], np.finfo(float).tiny)).T
        return np.asarray(low + self._places * (high - low))

    def _sampling(self, widths: np.ndarray) -> np.ndarray:
        """Return the standard error of the bound at each width, as a share of it."""
        at, error = (self.bound.curve_[name].to_numpy(dtype=float) for name in ("width", "standard_error"))
        low = self.bound.predict(at, return_bounds=True)[1][:, 0]
        return np.interp(widths, at, np.divide(error, low, out=np.zeros(len(low)), where=low > 0.0))

    def chosen(self, shifts: np.ndarray, weights: np.ndarray) -> tuple[Law, dict[str, float]]:
        cell = _CELL * (_EXPONENTS[1] - _EXPONENTS[0])
        exponent = float(weights @ (self._exponents[:, 0] + cell * shifts[:, 1]))
        coefficient = _COEFFICIENT[0] + _COEFFICIENT[1] * float(weights @ shifts[:, 0])
        return AboveBottleneck(self.bound, exponent), {"coefficient": coefficient}


CANDIDATES: dict[str, Callable[[float, float, Known], Candidate]] = {
    "power": Power,
    "power above baseline": PowerAboveBaseline,
    "exponential": Decay,
    "ends at teacher": ToTeacher,
    "anchored": FromZero,
    "anchored at both ends": FromZeroToTeacher,
    "above bottleneck": AboveBound,
}


def candidates(widest: float, level: float, known: Known) -> dict[str, Candidate]:
    """Return the possible laws by name, given the knowledge of the teacher."""
    missing = set()
    if known.zero_width_loss is None:
        missing |= {"anchored", "anchored at both ends"}
    if known.teacher_width is None:
        missing |= {"anchored at both ends"}
    if known.bound is None:
        missing |= {"above bottleneck"}
    return {name: make(widest, level, known) for name, make in CANDIDATES.items() if name not in missing}


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
