"""Dictionaries of any library: checked codes, sums over rows, and the cosines between directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from geofloor._validation import check_csr, plain_array, shown

_CODES_AT_A_TIME = 2**24  # numbers in a dense array of codes


class Dictionary:
    """A `SparseAutoencoder`, or any other object that encodes and decodes, with checked results.

    Parameters
    ----------
    autoencoder : object
        ``transform`` turns rows (n_rows, width), float32, into codes (n_rows, n_latents): an array or a SciPy sparse
        matrix. ``inverse_transform`` turns codes into rows. The directions are the rows of ``decoder_``, an array of
        shape (n_latents, width), if there is one. Otherwise they are the reconstructions of unit codes, minus that of
        codes of 0, which assumes that ``inverse_transform`` is linear with an offset.
    rows : ndarray of shape (n_rows, width), float32
        Some rows, to check the autoencoder on.

    Attributes
    ----------
    n_latents : int
        Codes per row.
    width : int
        Numbers per row.
    is_sparse : bool
        Whether codes are a sparse matrix.

    Raises
    ------
    TypeError
        If it lacks a method.
    ValueError
        If it can't encode and decode the rows.
    """

    def __init__(self, autoencoder: Any, rows: np.ndarray) -> None:
        self.autoencoder = autoencoder
        self.width = rows.shape[1]
        self.n_latents, self.is_sparse = -1, False
        check_methods(autoencoder)
        fitted_on = getattr(autoencoder, "n_features_in_", self.width)
        if fitted_on != self.width:
            raise ValueError(
                f"autoencoder was fitted on activations of width {fitted_on}, and the teacher's are {self.width} wide; "
                "fit one on activations of this teacher, after this block."
            )
        try:
            codes, _ = self.run(rows[:2])
        except NotFittedError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"autoencoder={shown(autoencoder)} can't reconstruct activations of width {self.width}; give a "
                f"dictionary of this teacher's activations after this block ({type(error).__name__}: {error})."
            ) from error
        self.n_latents, self.is_sparse = codes.shape[1], sp.issparse(codes)

    def run(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return the codes and the reconstruction of rows."""
        codes = self.encode(rows)
        decoded = self.decode(codes)
        if decoded.shape != rows.shape:
            raise ValueError(
                f"autoencoder gave a reconstruction of shape {decoded.shape} for rows of shape {rows.shape}."
            )
        return codes, decoded

    def encode(self, rows: np.ndarray) -> Any:
        """Return the codes of rows, (n_rows, n_latents): a CSR array or an ndarray."""
        codes: Any = self.autoencoder.transform(rows)
        if hasattr(codes, "tocsr"):
            codes = codes.tocsr()
            check_csr(codes, "codes")
        else:
            codes = np.asarray(plain_array(codes, "codes"))
        if codes.ndim != 2 or codes.shape[0] != len(rows):
            raise ValueError(
                f"autoencoder gave codes of shape {codes.shape} for {len(rows)} rows; give one row for each."
            )
        if self.n_latents >= 0 and (codes.shape[1] != self.n_latents or sp.issparse(codes) != self.is_sparse):
            kind = "a sparse matrix" if self.is_sparse else "an array"
            raise ValueError(
                f"autoencoder gave codes of another kind than before; give {kind} of {self.n_latents} columns each "
                "time."
            )
        return codes

    def decode(self, codes: Any) -> np.ndarray:
        """Return the rows that codes stand for, float32."""
        decoded = self.autoencoder.inverse_transform(codes)
        return np.asarray(plain_array(decoded, "autoencoder.inverse_transform"), dtype=np.float32)

    def explained_variance(self, rows: np.ndarray) -> float:
        """Return one minus the squared error over the squared distance from the mean; NaN for constant rows."""
        step = max(_CODES_AT_A_TIME // max(self.n_latents, self.width), 1)
        error = total = 0.0
        mean = rows.mean(axis=0, dtype=np.float64)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step].astype(np.float64)
            error += float(np.square(piece - self.run(rows[start : start + step])[1]).sum())
            total += float(np.square(piece - mean).sum())
        return 1.0 - error / total if total > 0.0 else float("nan")

    def directions(self, latents: np.ndarray) -> np.ndarray:
        """Return the decoder directions of some latents, (n, width), float32.

        These are rows of ``decoder_`` where the dictionary has it. Otherwise they are the reconstructions of unit
        codes, minus the reconstruction of codes of 0.
        """
        decoder = getattr(self.autoencoder, "decoder_", None)
        if getattr(decoder, "shape", None) == (self.n_latents, self.width):
            return np.asarray(plain_array(decoder, "autoencoder.decoder_"), dtype=np.float32)[latents]
        step = max(_CODES_AT_A_TIME // self.n_latents, 1)
        origin = self.decode(self._unit_codes(latents[:1]) * np.float32(0.0))
        pieces = [
            self.decode(self._unit_codes(latents[start : start + step])) - origin
            for start in range(0, len(latents), step)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, self.width), dtype=np.float32)

    def _unit_codes(self, latents: np.ndarray) -> Any:
        """Make one row per latent, with a 1 in its column."""
        ones = np.ones(len(latents), dtype=np.float32)
        shape = (len(latents), self.n_latents)
        codes = sp.csr_array((ones, (np.arange(len(latents)), latents)), shape=shape)
        return codes if self.is_sparse else codes.toarray()


def check_methods(autoencoder: Any) -> None:
    """Refuse objects without the two methods, and unfitted estimators."""
    if isinstance(autoencoder, type) or not (
        hasattr(autoencoder, "transform") and hasattr(autoencoder, "inverse_transform")
    ):
        raise TypeError(
            f"autoencoder={shown(autoencoder)} is a {type(autoencoder).__name__} without transform and "
            "inverse_transform; give a fitted SparseAutoencoder, or another object that has both."
        )
    if isinstance(autoencoder, BaseEstimator):
        check_is_fitted(autoencoder)


class DictionarySums:
    """A dictionary that adds to its sums whenever it reconstructs rows.

    Parameters
    ----------
    autoencoder : object
        As in `Dictionary`.
    rows : ndarray of shape (n_rows, width), float32
        Some rows, to check the autoencoder on.

    Attributes
    ----------
    dictionary : Dictionary
        The dictionary.
    n_latents : int
        Codes per row.
    n_tokens : int
        Rows reconstructed so far.
    n_fired : ndarray of shape (n_latents,), int64
        Rows with a code other than 0, by latent.
    """

    def __init__(self, autoencoder: Any, rows: np.ndarray) -> None:
        self.dictionary = Dictionary(autoencoder, rows)
        self.n_latents = self.dictionary.n_latents
        self.n_tokens = 0
        self.n_fired = np.zeros(self.n_latents, dtype=np.int64)
        self._total_ratio = 0.0
        # About zero: E‖x̂‖² and E[x·x̂]. About the mean of the rows: E‖x − x̂‖², E‖x‖², E‖x̂‖² and E[x·x̂].
        self._products, self._centered = np.zeros(2), np.zeros(4)

    def reconstruct(self, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Reconstruct rows in pieces that fit into memory, and add to the sums.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, width), float32
            Activations.
        mean : ndarray of shape (width,), float64
            Mean of the rows of all calls.

        Returns
        -------
        reconstruction : ndarray of shape (n_rows, width), float32
            The reconstruction.

        Raises
        ------
        ValueError
            If the dictionary gives anything but finite codes and reconstructions of the right shape.
        """
        reconstruction = np.empty_like(rows)
        step = max(_CODES_AT_A_TIME // max(self.n_latents, rows.shape[1]), 1)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            codes, decoded = self.dictionary.run(piece)
            if not np.isfinite(decoded).all():
                raise ValueError("autoencoder gave reconstructions that are not finite; check its weights.")
            self._add(piece, codes, decoded, mean)
            reconstruction[start : start + step] = decoded
        return reconstruction

    def _add(self, rows: np.ndarray, codes: Any, decoded: np.ndarray, mean: np.ndarray) -> None:
        self.n_tokens += len(rows)
        if self.dictionary.is_sparse:
            self.n_fired += np.bincount(codes.indices[codes.data != 0], minlength=self.n_latents)
        else:
            self.n_fired += np.count_nonzero(codes, axis=0)
        exact, other = rows.astype(np.float64), decoded.astype(np.float64)
        norms = np.linalg.norm(exact, axis=1)
        norms[norms == 0.0] = 1.0
        self._total_ratio += float((np.linalg.norm(other, axis=1) / norms).sum())
        self._products += [np.vdot(other, other), np.vdot(exact, other)]
        error = exact - other
        exact -= mean
        other -= mean
        self._centered += [np.vdot(error, error), np.vdot(exact, exact), np.vdot(other, other), np.vdot(exact, other)]

    @property
    def l0(self) -> float:
        """Mean number of codes other than 0 per row."""
        return float(self.n_fired.sum() / self.n_tokens)

    @property
    def explained_variance(self) -> float:
        """One minus the squared error over the squared distance from the mean; NaN for constant rows."""
        error, total, _, _ = self._centered
        return float(1.0 - error / total) if total > 0.0 else float("nan")

    @property
    def l2_ratio(self) -> float:
        """Norm of the reconstruction over the norm of the row, averaged over rows."""
        return self._total_ratio / self.n_tokens

    @property
    def relative_reconstruction_bias(self) -> float:
        """E‖x̂‖² / E[x·x̂]; NaN if the product is 0."""
        return float(self._products[0] / self._products[1]) if self._products[1] else float("nan")

    @property
    def centered_reconstruction_bias(self) -> float:
        """E‖x̂‖² / E[x·x̂] about the mean of the rows; NaN if the product is 0."""
        _, _, squares, product = self._centered
        return float(squares / product) if product else float("nan")

    def share_firing_over(self, rate: float) -> float:
        """Return the share of latents with a firing rate above `rate`."""
        return float((self.n_fired > rate * self.n_tokens).mean())

    def directions(self, latents: np.ndarray) -> np.ndarray:
        """Return the decoder directions of some latents, (n, width), float32."""
        return self.dictionary.directions(latents)


def nearest_cosines(directions: np.ndarray, *, block: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Find, for each direction, the largest cosine with any other.

    Parameters
    ----------
    directions : ndarray of shape (n, width), float32
        At least two directions. One of norm 0 has cosine 0 with all others.
    block : int, default=1024
        Directions compared at once; memory holds block × block cosines.

    Returns
    -------
    cosines : ndarray of shape (n,), float32
        Largest cosine.
    neighbors : ndarray of shape (n,), int64
        Index of the other direction.
    """
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
    n = len(unit)
    cosines, neighbors = np.full(n, -np.inf, dtype=np.float32), np.zeros(n, dtype=np.int64)

    def raise_to(first: int, second: int, found: np.ndarray) -> None:
        best = found.argmax(axis=1)
        values = found[np.arange(len(found)), best]
        at = slice(first, first + len(found))
        better = values > cosines[at]
        cosines[at] = np.where(better, values, cosines[at])
        neighbors[at] = np.where(better, second + best, neighbors[at])

    for first in range(0, n, block):
        for second in range(first, n, block):
            found = unit[first : first + block] @ unit[second : second + block].T
            if first == second:
                np.fill_diagonal(found, -np.inf)
            raise_to(first, second, found)
            if first != second:
                raise_to(second, first, found.T)
    return np.clip(cosines, -1.0, 1.0), neighbors
