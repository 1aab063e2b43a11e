"""Measure the feature table of a sparse autoencoder's codes: importance, firing rate and mean per feature."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils._set_output import _get_output_config  # scikit-learn's own wrapper calls it; no public name exists
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from geofloor._files.estimators import SaveMixin
from geofloor._files.schema import number, optional, texts
from geofloor._files.tables import array
from geofloor._validation import check_csr, check_number, is_stream, plain_array, shown, warn_caller
from geofloor.features._code_sums import check_sums, count_by_power, is_outlying, largest_rows, sum_dense, sum_sparse
from geofloor.features._tail import PowerLawTail, check_level, power_law_tail
from geofloor.theory import is_too_dense
from geofloor.theory._capacity import CapacityMethod, features_per_dimension

COLUMNS = ("importance", "firing_rate", "mean")
_SMALLEST_SQUARE = 1e-290  # squares near the smallest float64 lose digits


class OutlierRowsWarning(UserWarning):
    """Warning of a handful of rows with a large share of the second moment."""


class _NoTableError(ValueError, AttributeError):
    """Error for codes without a feature table.

    It is an AttributeError too, because `hasattr` and scikit-learn's HTML display expect one.
    """


class FeatureStatistics(SaveMixin, TransformerMixin, BaseEstimator):
    r"""Importance, firing rate and mean of every feature, measured on sparse codes.

    Rows of the output are *features*, not samples. The table has one row per alive latent, in order of falling
    importance, and `FloorPredictor` is fitted on it.

    Parameters
    ----------
    min_firing_rate : float, default=1e-5
        Fraction of tokens, in [0, 1). A latent is an alive feature if it fires on more than this fraction.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.theory.capacity`.
    level : float, default=0.9
        Coverage probability of `tail_exponent_interval_`, between 0 and 1.

    Attributes
    ----------
    n_tokens_ : int
        Number of tokens seen.
    n_alive_ : int
        Number of alive features F.
    alive_ : ndarray of shape (n_alive_,), int64
        Latent of each row of the table.
    table_ : ndarray of shape (n_alive_, 3), float64
        The feature table. Its columns are importance E[z²], in squared units of the codes, firing rate P(z ≠ 0) and
        mean E[z], in units of the codes, each over all tokens. Its rows stand in order of falling importance, and
        equal ones in order of latent.
    mean_l0_ : float
        Mean number of alive features firing per token, L0.
    alpha_ : float
        Sparsity α = 1 − L0/F.
    capacity_ : float
        Features per dimension, g(α).
    critical_width_ : float
        Width d* = F/g(α), in dimensions.
    tail_exponent_ : float
        Exponent β of the density p(I) ∝ I^−β of the largest importances; NaN with fewer than 51
        features of distinct importance.
    tail_exponent_interval_ : tuple of (float, float)
        Confidence interval of the exponent, given the start of the tail.
    tail_start_ : float
        Importance where the tail starts.
    n_features_in_ : int
        Number of latents, alive or not.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the latents, if `fit` was given a DataFrame with names.

    See Also
    --------
    SparseAutoencoder : Learns the codes.
    FloorPredictor : Predicts loss floors from the feature table.
    power_law_tail : Fits `tail_exponent_`.

    Notes
    -----
    Importance :math:`I_j = \mathbb{E}[z_j^2]`, the bound on the firing rate and
    :math:`\alpha = 1 - L_0/F` over alive features are those of [1]_, Section 5.2.

    The alive latents depend on the number of tokens. The smallest firing rate above zero is 1/n_tokens_. With fewer
    than 1/min_firing_rate tokens, 100,000 by default, a single firing therefore makes a latent alive, and rarer
    latents count as dead. Compare tables of the same number of tokens only.

    Memory is that of three float64 sums per latent, for any number of batches. Codes of any dtype are summed in
    float64; a stored zero is no firing, and a negative code is one. The squared norms of rows are counted by their
    power of 2, to find the share of the largest rows. Attributes are computed from the sums at first access and kept
    until more codes come.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FeatureStatistics
    >>> codes = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> statistics = FeatureStatistics().fit(codes)
    >>> statistics.table_
    array([[1.25, 0.5 , 0.75],
           [0.25, 0.25, 0.25]])
    >>> statistics.alive_
    array([1, 0])
    >>> statistics.alpha_
    0.625
    """

    _saved: ClassVar = {
        "totals": array(ndim=2),
        "n_tokens": number(1, whole=True),
        "norms_by_power": array(ndim=2),
        "names": optional(texts),
    }
    # `codes` are data, not metadata to route.
    __metadata_request__fit: ClassVar = {"codes": UNUSED}
    __metadata_request__partial_fit: ClassVar = {"codes": UNUSED}
    __metadata_request__transform: ClassVar = {"codes": UNUSED}

    def __init__(
        self,
        *,
        min_firing_rate: float = 1e-5,
        capacity: CapacityMethod = "asymptotic",
        level: float = 0.9,
    ) -> None:
        self.min_firing_rate = min_firing_rate
        self.capacity = capacity
        self.level = level

    def fit(self, codes: Any, y: Any = None) -> FeatureStatistics:
        """Measure all features on `codes` and forget earlier codes.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of a sparse autoencoder. A generator or a list of matrices is read one batch at a time.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : FeatureStatistics
            The fitted statistics.

        Raises
        ------
        ValueError
            If a parameter is out of range; if codes are empty, not finite, too large or too small for their
            squares, malformed or differ in their number of latents; if no feature is alive.

        Warns
        -----
        ConvergenceWarning
            If alive features fire so often that `alpha_` is below 0.632, where Eq. 1 does not hold.
        OutlierRowsWarning
            If the largest 0.1% of the rows with firings have at least 100 times the mean squared norm.
        """
        self._check_parameters()
        self._set_totals(*self._measure(codes, reset=True))
        _ = self.table_  # raises if no feature is alive
        return self

    def partial_fit(self, codes: Any, y: Any = None) -> FeatureStatistics:
        """Add `codes` to the earlier ones.

        A call costs no more than the sums. Attributes are computed at their next access, with the warnings of `fit`.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of a sparse autoencoder.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : FeatureStatistics
            The updated statistics.

        Raises
        ------
        ValueError
            As from `fit`, but dead features are no error. An error leaves the statistics unchanged.
        """
        self._check_parameters()
        if not hasattr(self, "n_tokens_"):
            self._set_totals(*self._measure(codes, reset=True))
        else:
            totals, n_tokens, by_power = self._measure(codes, reset=False)
            self._set_totals(self._totals + totals, self.n_tokens_ + n_tokens, self._norms_by_power + by_power)
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add the statistics of another worker.

        Parameters
        ----------
        other : FeatureStatistics
            Fitted statistics of other tokens and the same latents, left unchanged. Its parameters are not used.

        Returns
        -------
        self : FeatureStatistics
            Statistics of all tokens, equal to those of one pass up to rounding.

        Raises
        ------
        NotFittedError
            If either has seen no codes.
        ValueError
            If `other` is no FeatureStatistics or has another number of latents.
        """
        if not isinstance(other, FeatureStatistics):
            raise ValueError(
                f"other={shown(other)} is a {type(other).__name__}; merge takes a fitted FeatureStatistics."
            )
        for statistics in (self, other):
            check_is_fitted(statistics, "n_tokens_")
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"other has {other.n_features_in_} latents and self {self.n_features_in_}; "
                "merge statistics of the same autoencoder only."
            )
        self._set_totals(
            self._totals + other._totals,
            self.n_tokens_ + other.n_tokens_,
            self._norms_by_power + other._norms_by_power,
        )
        return self

    def fit_transform(self, codes: Any, y: Any = None) -> Any:
        """Measure all features on `codes` and return the feature table.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of a sparse autoencoder, read once.
        y : None
            Ignored; here by convention.

        Returns
        -------
        table : ndarray of shape (n_alive_, 3), float64, or DataFrame
            A copy of `table_`.
        """
        return self._in_container(self.fit(codes).table_.copy())

    def transform(self, codes: Any) -> Any:
        """Measure the alive features on other codes, in the same order.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of the same autoencoder, for example on held-out text.

        Returns
        -------
        table : ndarray of shape (n_alive_, 3), float64, or DataFrame
            Importance, firing rate and mean on `codes`. Row i is the feature of latent ``alive_[i]``, so that
            importances may be in any order. Those of features without firings are 0.

        Raises
        ------
        NotFittedError
            If it is not fitted.
        ValueError
            If codes are empty, not finite or have another number of latents than in `fit`.
        """
        check_is_fitted(self, "n_tokens_")
        alive = self.alive_
        totals, n_tokens, _ = self._measure(codes, reset=False)
        return self._in_container(_table(totals, n_tokens, alive))

    def frame(self) -> Any:
        """Return the feature table with named columns and the latent of each row.

        Returns
        -------
        frame : DataFrame of shape (n_alive_, 3)
            Copy of `table_`, with the columns ``"importance"``, ``"firing_rate"`` and ``"mean"``. Its index
            ``"latent"`` joins it with labels of latents.

        Raises
        ------
        NotFittedError
            If it is not fitted.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from geofloor import FeatureStatistics
        >>> statistics = FeatureStatistics().fit(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> statistics.frame().join(pd.Series({0: "quotes", 1: "digits"}, name="label")).label.tolist()
        ['digits', 'quotes']
        """
        return _frame(self.table_, self.alive_)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Get the names of the columns of the table.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the latents, checked against those of `fit` and otherwise unused.

        Returns
        -------
        names : ndarray of shape (3,), object
            ``"importance"``, ``"firing_rate"`` and ``"mean"``.
        """
        check_is_fitted(self, "n_tokens_")
        _check_feature_names_in(self, input_features, generate_names=False)
        return np.array(COLUMNS, dtype=object)

    @cached_property
    def alive_(self) -> np.ndarray:
        check_is_fitted(self, "n_tokens_")
        squares, firings, _ = self._totals
        firing_rates = firings / self.n_tokens_
        alive = np.flatnonzero(firing_rates > self.min_firing_rate)
        if not alive.size:
            raise _NoTableError(
                f"No feature is alive: the largest firing rate on {self.n_tokens_} tokens is {firing_rates.max():.3g}, "
                f"not above min_firing_rate={self.min_firing_rate!r}; lower it, or give codes that fire."
            )
        return alive[np.argsort(-squares[alive], kind="stable")]

    @cached_property
    def table_(self) -> np.ndarray:
        alive = self.alive_
        if self._totals[0].max() < _SMALLEST_SQUARE:
            raise _NoTableError("codes are so small that their squares vanish in float64; multiply them by a constant.")
        table = _table(self._totals, self.n_tokens_, alive)
        self._warn(table[:, 1].sum(), len(table))
        return table

    def _warn(self, mean_l0: float, n_alive: int) -> None:
        """Warn of dense codes and of outlying rows."""
        alpha = 1.0 - mean_l0 / n_alive
        if is_too_dense(alpha):
            warn_caller(
                f"{mean_l0:,.1f} of {n_alive:,} alive latents fire per token: alpha_={alpha:.3f} is below 0.632, out "
                "of the range of Eq. 1, and the importances are not those of single features. The autoencoder has not "
                "converged, or its codes are too dense: train it for longer, or with fewer codes per token.",
                ConvergenceWarning,
            )
        few, all_rows, share = largest_rows(self._norms_by_power)
        if is_outlying(few, all_rows, share):
            warn_caller(
                f"{few:,} of the {all_rows:,} rows with firings carry {share:.0%} of the second moment of the codes "
                "and change all importances. Most often such rows are attention sinks or padding: drop them before "
                "the autoencoder is trained, by skip_first if they stand at the start of sequences, by exclude_tokens "
                "if they are special tokens, or by geofloor.features.drop_outliers.",
                OutlierRowsWarning,
            )

    @property
    def n_alive_(self) -> int:
        return len(self.alive_)

    @property
    def mean_l0_(self) -> float:
        return float(self.table_[:, 1].sum())

    @property
    def alpha_(self) -> float:
        return 1.0 - self.mean_l0_ / self.n_alive_

    @property
    def capacity_(self) -> float:
        return float(features_per_dimension(np.array(self.alpha_), self.capacity, "capacity"))

    @property
    def critical_width_(self) -> float:
        return self.n_alive_ / self.capacity_

    @cached_property
    def _tail(self) -> PowerLawTail:
        return power_law_tail(self.table_[:, 0], level=self.level)

    @property
    def tail_exponent_(self) -> float:
        return self._tail.exponent

    @property
    def tail_exponent_interval_(self) -> tuple[float, float]:
        return self._tail.interval

    @property
    def tail_start_(self) -> float:
        return self._tail.start

    def _check_parameters(self) -> None:
        check_number("min_firing_rate", self.min_firing_rate, 0.0, 1.0, open_high=True)
        check_level(self.level)
        features_per_dimension(np.array(0.99), self.capacity, "capacity")  # refused before the sums

    def _measure(self, codes: Any, *, reset: bool) -> tuple[np.ndarray, int, np.ndarray]:
        """Sum squares, firings and values per latent, (3, n_latents); count tokens, and rows by their squared norm."""
        totals, n_tokens, by_power = np.zeros((3, 1)), 0, count_by_power(np.empty(0))
        if not isinstance(codes, Iterator):
            codes = plain_array(codes, "codes")
        for batch in codes if is_stream(codes) else [codes]:
            checked = self._checked(batch, reset=reset and n_tokens == 0)
            sums, squared_norms = sum_sparse(checked) if sp.issparse(checked) else sum_dense(checked)
            totals, by_power = totals + sums, by_power + count_by_power(squared_norms)
            n_tokens += checked.shape[0]
            del batch, checked  # frees the batch before the stream makes the next one
        if not n_tokens:
            raise ValueError("codes gave no batch; give an iterable of at least one, and a generator only once.")
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(totals).all() and np.isfinite(totals[0].sum())
        if not finite:
            raise ValueError("codes are so large that their squares overflow float64; scale them down.")
        return totals, n_tokens, by_power

    def _checked(self, batch: Any, *, reset: bool) -> Any:
        """Check one batch of codes and return it as an array or CSR."""
        plain = plain_array(batch, "codes")
        check_csr(plain, "codes")
        try:
            checked = validate_data(self, plain, reset=reset, accept_sparse="csr", dtype="numeric")
            if checked.dtype.kind == "O":  # from a list of lists
                checked = checked.astype(np.float64)
        except (OverflowError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"codes={shown(batch)} hold what float64 can't: {error}; give finite numbers.") from error
        return plain_array(checked, "codes")  # columns of a DataFrame may hold dates

    def _set_totals(self, totals: np.ndarray, n_tokens: int, by_power: np.ndarray) -> None:
        """Store sums and drop the attributes computed from earlier ones."""
        self._totals, self.n_tokens_, self._norms_by_power = totals, n_tokens, by_power
        for name in ("alive_", "table_", "_tail"):
            self.__dict__.pop(name, None)

    def _state_to_save(self) -> dict[str, Any]:
        names = getattr(self, "feature_names_in_", None)
        names = None if names is None else names.tolist()
        return dict(zip(self._saved, (self._totals, self.n_tokens_, self._norms_by_power, names), strict=True))

    def _restore(self, state: dict[str, Any]) -> None:
        totals, n_tokens, by_power, names = state.values()
        self._check_parameters()
        check_sums(totals, n_tokens, by_power)
        self.n_features_in_ = totals.shape[1]
        if names is not None:
            if len(names) != totals.shape[1]:
                raise ValueError(f"it has {len(names)} names of {totals.shape[1]} latents")
            self.feature_names_in_ = np.array(names, dtype=object)
        self._set_totals(totals, n_tokens, by_power)

    def _in_container(self, table: np.ndarray) -> Any:
        # scikit-learn would index the rows by token, as the codes are; they are latents.
        if _get_output_config("transform", self)["dense"] != "pandas":
            return table
        return _frame(table, self.alive_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _frame(table: np.ndarray, latents: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(table.copy(), index=pd.Index(latents, name="latent"), columns=list(COLUMNS))


def _table(totals: np.ndarray, n_tokens: int, alive: np.ndarray) -> np.ndarray:
    """Divide the sums of the alive latents by the number of tokens, (n_alive, 3)."""
    return np.ascontiguousarray(totals[:, alive].T) / n_tokens
