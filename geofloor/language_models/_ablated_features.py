"""Features for ablation from the residual stream: latents of an autoencoder, or principal components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from geofloor._validation import warn_caller
from geofloor.features import OutlierRowsWarning
from geofloor.features._code_sums import count_by_power, is_outlying, largest_rows
from geofloor.features._dictionary_sums import Dictionary
from geofloor.theory import capacity
from geofloor.theory._capacity import CapacityMethod


class AblatedFeatures(Protocol):
    """Features as directions in the activations, most important first."""

    n_features: int
    width: int
    alpha: float
    capacity: float

    def encode(self, states: np.ndarray) -> Any:
        """Compute the activations of the features, in the form expected by `part`."""

    def part(self, activations: Any, start: int, stop: int) -> np.ndarray:
        """Sum the contributions of the features ranked `start` to `stop`, about their means, (n_tokens, width)."""


class Latents:
    """Features of a dictionary, ordered by E[z²].

    Parameters
    ----------
    dictionary : Dictionary
        The dictionary.
    statistics : FeatureStatistics
        Fitted on codes of the dictionary.
    method : str or callable
        As in `geofloor.theory.capacity`.
    """

    def __init__(self, dictionary: Dictionary, statistics: Any, method: CapacityMethod) -> None:
        table = np.asarray(statistics.table_)
        if statistics.n_features_in_ != dictionary.n_latents:
            raise ValueError(
                f"statistics are of {statistics.n_features_in_} latents, and autoencoder has {dictionary.n_latents} "
                "latents; fit statistics on the autoencoder's codes."
            )
        order = np.argsort(-table[:, 0], kind="stable")
        self._dictionary = dictionary
        self._latents, self._means = statistics.alive_[order], table[order, 2]
        self._directions = dictionary.directions(self._latents)
        norms = np.linalg.norm(self._directions.astype(np.float64), axis=1)
        if not np.allclose(norms, 1.0, atol=1e-3):
            raise ValueError(
                f"autoencoder has decoder_ directions of norm {norms.min():.3g} to {norms.max():.3g}. Importances "
                "assume norm 1: divide each row of decoder_ by its norm, and multiply the latent's encoder weight and "
                "bias by it."
            )
        self.n_features, self.width = self._directions.shape
        self.alpha = float(statistics.alpha_)
        self.capacity = float(capacity(self.alpha, method))

    def encode(self, states: np.ndarray) -> Any:
        codes = self._dictionary.encode(states)[:, self._latents]
        return codes.tocsc() if self._dictionary.is_sparse else codes

    def part(self, activations: Any, start: int, stop: int) -> np.ndarray:
        directions = self._directions[start:stop]
        return activations[:, start:stop] @ directions - self._means[start:stop] @ directions


class RowSizes:
    """Squared norms of centered activations, counted to notice a few that dominate."""

    def __init__(self) -> None:
        self._by_power: Any = 0.0

    def add(self, centered: np.ndarray) -> None:
        """Count some rows."""
        self._by_power = self._by_power + count_by_power(np.square(centered, dtype=np.float64).sum(axis=1))

    def warn(self, effect: str) -> None:
        """Warn if 0.1% of the rows carry a tenth of the sum."""
        few, n_rows, share = largest_rows(self._by_power)
        if is_outlying(few, n_rows, share):
            warn_caller(
                f"tokens: {few:,} of {n_rows:,} activations carry {share:.0%} of the variance and {effect}. Most often "
                "they are attention sinks; leave them out by skip_first or exclude_tokens.",
                OutlierRowsWarning,
            )


class PrincipalComponents:
    """Principal components of the activations, one per dimension.

    Parameters
    ----------
    activations : iterator of ndarray of shape (n_tokens, width)
        Activations, read once.
    width : int
        d_model.
    """

    def __init__(self, activations: Iterator[np.ndarray], width: int) -> None:
        n_tokens, shift, sizes = 0, np.zeros(width), RowSizes()
        total, products = np.zeros(width), np.zeros((width, width))
        for batch in activations:
            if not n_tokens:
                shift = batch.mean(axis=0, dtype=np.float64)  # an estimate of the mean keeps the sums of squares small
            centered = batch - shift
            total += centered.sum(axis=0)
            products += centered.T @ centered
            sizes.add(centered)
            n_tokens += len(batch)
        sizes.warn("turn the principal components")
        mean = total / n_tokens
        _, vectors = np.linalg.eigh(products / n_tokens - np.outer(mean, mean))
        self._mean, self._vectors = shift + mean, vectors[:, ::-1]
        self.n_features = self.width = width
        self.alpha, self.capacity = float("nan"), 1.0

    def encode(self, states: np.ndarray) -> np.ndarray:
        return (states - self._mean) @ self._vectors

    def part(self, activations: np.ndarray, start: int, stop: int) -> np.ndarray:
        return activations[:, start:stop] @ self._vectors[:, start:stop].T
