"""The data of a toy model: sparse features, drawn from a described distribution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from geofloor._validation import check_array_of_numbers, check_number, plain_array, shown
from geofloor.theory._distortion import AMPLITUDES, check_amplitude


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    r"""Distribution of sparse, non-negative features for training toy models.

    Each feature is zero with probability α and otherwise has a random amplitude, independently of the
    others unless `groups` says that they exclude each other.

    Parameters
    ----------
    n_features : int
        Number of features n.
    alpha : float or array-like of shape (n_features,)
        Sparsity, in [0, 1): of all features, or of each.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default="uniform"
        Law of an active feature: U[0, 1], Exp(1), the absolute value of N(0, 1), or 1.
    groups : array-like of int of shape (n_features,), default=None
        Labels of groups. Features of one group are mutually exclusive: at most one is active in a sample.
        With None all are independent.

    Attributes
    ----------
    firing_rates : ndarray of shape (n_features,), float64
        P(x_i > 0) = 1 − α_i.
    means : ndarray of shape (n_features,), float64
        E[x_i].
    second_moments : ndarray of shape (n_features,), float64
        E[x_i²]; (1 − α)/3 for the uniform law.
    variances : ndarray of shape (n_features,), float64
        Var[x_i]: the loss of dropping a feature from a student with a bias, per unit of importance.
    empty_probability : float
        Probability that no feature is active.

    Raises
    ------
    ValueError
        If the number of features is not positive, a sparsity is outside [0, 1), the law is unknown,
        `groups` has another length, or the firing rates in a group add up to more than 1.

    See Also
    --------
    geofloor.ToyModel : Learns such features.

    Examples
    --------
    >>> from geofloor.toy import SparseFeatures
    >>> features = SparseFeatures(40, alpha=0.9)
    >>> features.sample(1000, random_state=0).shape
    (1000, 40)
    >>> features.second_moments[0].round(4), round(features.empty_probability, 4)
    (np.float64(0.0333), 0.0148)
    """

    n_features: int
    alpha: float | ArrayLike
    amplitude: str = "uniform"
    groups: ArrayLike | None = None

    def __post_init__(self) -> None:
        # Keep copies, so that nobody can change them afterwards.
        self._keep("n_features", check_number("n_features", self.n_features, 1, whole=True))
        alpha = check_array_of_numbers(self.alpha, "alpha", ndim=None)
        if alpha.shape not in {(), (self.n_features,)}:
            raise ValueError(
                f"alpha has shape {alpha.shape}; give one sparsity, or {self.n_features}, one for each feature."
            )
        outside = alpha[~((alpha >= 0.0) & (alpha < 1.0))]
        if outside.size:
            raise ValueError(f"alpha={outside.flat[0]:g}: a sparsity must be at least 0 and below 1.")
        self._keep("alpha", alpha if alpha.ndim else float(alpha))
        if not isinstance(self.amplitude, str):
            raise ValueError(
                f"amplitude={shown(self.amplitude)} is unknown; use one of {', '.join(map(repr, AMPLITUDES))}."
            )
        check_amplitude(self.amplitude)
        if self.groups is not None:
            groups = np.array(plain_array(self.groups, "groups"))
            if groups.shape != (self.n_features,):
                raise ValueError(
                    f"groups has shape {groups.shape}; give {self.n_features} labels, one for each feature."
                )
            self._keep("groups", groups)
            if self._unit_rates.max() > 1.0 + 1e-9:
                raise ValueError(
                    f"The firing rates of a group add up to {self._unit_rates.max():g}; mutually exclusive "
                    "features need at most 1, so give a larger alpha or smaller groups."
                )

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def firing_rates(self) -> np.ndarray:
        return np.broadcast_to(1.0 - np.asarray(self.alpha, dtype=np.float64), (self.n_features,)).copy()

    @property
    def means(self) -> np.ndarray:
        return self.firing_rates * AMPLITUDES[self.amplitude][0]

    @property
    def second_moments(self) -> np.ndarray:
        return self.firing_rates * AMPLITUDES[self.amplitude][1]

    @property
    def variances(self) -> np.ndarray:
        return self.second_moments - self.means**2

    @property
    def empty_probability(self) -> float:
        return float(np.prod(1.0 - np.minimum(self._unit_rates, 1.0)))

    def sample(self, n_samples: int, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draw samples.

        Parameters
        ----------
        n_samples : int
            Number of samples.
        random_state : int, RandomState or None, default=None
            Seed of the draws.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float32
            Features.
        """
        n_samples = check_number("n_samples", n_samples, 0, whole=True)
        rng = np.random.default_rng(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        return self._amplitudes(rng, self._unit_is_active(rng, n_samples), n_samples)

    def sample_active(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw non-empty samples: from the distribution given that a feature is active.

        Parameters
        ----------
        n_samples : int
            Number of samples.
        rng : numpy Generator
            Source of the draws.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float32
            Features.
        """
        n_samples = check_number("n_samples", n_samples, 1, whole=True)
        # Draw the first active unit, then the later ones: exact, without rejection.
        first = np.searchsorted(self._first_active, rng.random((n_samples, 1), dtype=np.float32), side="right")
        unit = np.arange(len(self._unit_rates))
        active = self._unit_is_active(rng, n_samples)
        active &= unit > first
        active |= unit == first
        return self._amplitudes(rng, active, n_samples)

    @cached_property
    def _unit_of(self) -> np.ndarray:
        """Unit of each feature: itself, or its group."""
        if self.groups is None:
            return np.arange(self.n_features)
        return np.unique(np.asarray(self.groups), return_inverse=True)[1]

    @cached_property
    def _unit_rates(self) -> np.ndarray:
        """Probability of each unit to be active; units are independent."""
        return np.bincount(self._unit_of, weights=self.firing_rates)

    @cached_property
    def _first_active(self) -> np.ndarray:
        """Distribution function of the first active unit of non-empty samples."""
        rates = np.minimum(self._unit_rates, 1.0)
        none_before = np.concatenate([[1.0], np.cumprod(1.0 - rates)[:-1]])
        distribution = np.cumsum(rates * none_before)
        return (distribution[:-1] / distribution[-1]).astype(np.float32)

    @cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of each feature's interval in [0, 1): the feature is active if the draw of its group falls into it."""
        lower, upper = np.zeros(self.n_features), np.ones(self.n_features)
        for unit in range(len(self._unit_rates)):
            members = np.flatnonzero(self._unit_of == unit)
            ends = np.cumsum(self.firing_rates[members])[:-1] / self._unit_rates[unit]
            lower[members[1:]], upper[members[:-1]] = ends, ends
        return lower.astype(np.float32), upper.astype(np.float32)

    def _unit_is_active(self, rng: np.random.Generator, n_samples: int) -> np.ndarray:
        draws = rng.random((n_samples, len(self._unit_rates)), dtype=np.float32)
        return draws < self._unit_rates.astype(np.float32)

    def _amplitudes(self, rng: np.random.Generator, unit_is_active: np.ndarray, n_samples: int) -> np.ndarray:
        active = unit_is_active
        if self.groups is not None:
            draw = rng.random(active.shape, dtype=np.float32)[:, self._unit_of]
            lower, upper = self._shares
            active = active[:, self._unit_of] & (draw >= lower) & (draw < upper)
        shape = (n_samples, self.n_features)
        if self.amplitude == "uniform":
            amplitudes = rng.random(shape, dtype=np.float32)
        elif self.amplitude == "exponential":
            amplitudes = rng.standard_exponential(shape, dtype=np.float32)
        elif self.amplitude == "half-normal":
            amplitudes = np.abs(rng.standard_normal(shape, dtype=np.float32))
        else:
            amplitudes = np.ones(shape, dtype=np.float32)
        amplitudes *= active
        return amplitudes
