"""The feature table of a sparse autoencoder's codes: importance, firing rate and mean of every feature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.stats import chi2
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state, gen_batches
from sklearn.utils._set_output import _get_output_config  # no public name; what scikit-learn's own wrapper asks
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from geofloor._validation import (
    check_array_of_numbers,
    check_csr,
    check_iterable,
    check_number,
    check_object,
    is_stream,
    plain_array,
    shown,
    warn_caller,
)
from geofloor.theory import is_too_dense
from geofloor.theory._capacity import CapacityMethod, features_per_dimension

COLUMNS = ("importance", "firing_rate", "mean")
_MIN_TAIL = 50  # with fewer, the relative standard error of β − 1 is over 14%
_MAX_STARTS = 100
_CHUNK = 2**16  # codes summed at a time: what is converted stays in the cache
_LOWEST_POWER = -1074  # of 2, of float64: squared norms of rows are counted by their power of 2
_FEW_ROWS = 1e-3  # share of the rows that are looked at for outliers
_OUTLYING = 100.0  # times the mean squared norm that they have on average: a tenth of the second moment, or more
_SMALLEST_SQUARE = 1e-290  # a largest square below it has lost digits, or is about to


class OutlierRowsWarning(UserWarning):
    """A handful of rows carries much of the second moment of the codes."""


class _NoTableError(ValueError, AttributeError):
    """No feature fires enough. An AttributeError too, for `hasattr` and scikit-learn's HTML display."""


class PowerLawTail(NamedTuple):
    """A power law p(x) ∝ x^−β fitted to the largest values of a sample.

    Attributes
    ----------
    exponent : float
        Exponent β of the density; NaN if there are too few values.
    interval : tuple of (float, float)
        Confidence interval of the exponent, given `start`.
    start : float
        Where the tail begins; it is the largest value outside it.
    n_tail : int
        Number of values above `start`.
    """

    exponent: float
    interval: tuple[float, float]
    start: float
    n_tail: int


def power_law_tail(values: ArrayLike, *, confidence_level: float = 0.95) -> PowerLawTail:
    r"""Fit a power law p(x) ∝ x^−β to the upper tail of positive values.

    Parameters
    ----------
    values : array-like of shape (n,)
        Sample, in any order. Zeros carry no information on a power law and are left out.
    confidence_level : float, default=0.95
        Level of the confidence interval, between 0 and 1.

    Returns
    -------
    tail : PowerLawTail
        Exponent, its interval, where the tail starts and how many values it holds. With fewer than
        51 distinct positive values everything is NaN and `n_tail` is 0.

    Raises
    ------
    ValueError
        If `values` is empty, not one-dimensional, negative or not finite, or `confidence_level` is
        not between 0 and 1.

    Notes
    -----
    Given a start :math:`x_0` that is itself one of the values, with k values above it, the continuous
    maximum-likelihood (Hill [1]_) estimate is

    .. math:: \hat\beta = 1 + k \Big/ \sum_{x_i > x_0} \ln(x_i / x_0),

    and :math:`2k\,(\beta - 1)/(\hat\beta - 1)` follows :math:`\chi^2_{2k}` exactly, which gives the
    interval. The start is the one with the smallest Kolmogorov-Smirnov distance between tail and fit
    [2]_, among at most 100 values at log-spaced ranks that leave a tail of at least 50. The interval
    does not cover the uncertainty of that choice.

    The method always returns its best power law, whether or not the sample has one.

    References
    ----------
    .. [1] Hill (1975), "A simple general approach to inference about the tail of a distribution",
       Annals of Statistics 3(5).
    .. [2] Clauset, Shalizi and Newman (2009), "Power-law distributions in empirical data",
       SIAM Review 51(4), Sections 3.1 and 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.features import power_law_tail
    >>> tail = power_law_tail(np.linspace(0, 1, 10_000, endpoint=False)[1:] ** -0.5)  # β = 3
    >>> round(tail.exponent, 1)
    3.0
    """
    _check_confidence_level(confidence_level)
    sample = check_array_of_numbers(values, "values", column=False)
    if sample.min() < 0:
        raise ValueError(f"values holds {sample.min()!r}; a power law has positive values only.")
    descending = np.sort(sample[sample > 0])[::-1]
    logs = np.log(descending)
    best, closest = PowerLawTail(math.nan, (math.nan, math.nan), math.nan, 0), math.inf
    for size in _tail_sizes(logs):
        excess = logs[:size] - logs[size]
        shape = size / excess.sum()
        survival, steps = np.exp(-shape * excess), np.arange(size + 1) / size
        distance = max(np.max(survival - steps[:-1]), np.max(steps[1:] - survival))
        if distance < closest:
            closest = distance
            low, high = chi2.ppf([0.5 - confidence_level / 2, 0.5 + confidence_level / 2], 2 * size) / (2 * size)
            interval = (float(1 + shape * low), float(1 + shape * high))
            best = PowerLawTail(float(1 + shape), interval, float(descending[size]), int(size))
    return best


def _tail_sizes(logs: np.ndarray) -> np.ndarray:
    """Numbers of values above the candidate starts; equal values are all inside a tail or all outside it."""
    if len(logs) <= _MIN_TAIL:
        return np.empty(0, dtype=np.intp)
    ranks = np.rint(np.geomspace(_MIN_TAIL, len(logs) - 1, _MAX_STARTS)).astype(np.intp)
    sizes = np.unique(np.searchsorted(-logs, -logs[ranks], side="left"))
    return sizes[sizes >= _MIN_TAIL]


class FeatureStatistics(TransformerMixin, BaseEstimator):
    r"""Measure importance, firing rate and mean of every feature on sparse codes.

    Rows of the output are *features*, not samples: the table has one row for each latent that is
    alive, most important first, and is what `FloorPredictor` is fitted on.

    Parameters
    ----------
    min_firing_rate : float, default=1e-5
        A latent is an alive feature if it fires on more than this fraction of tokens; in [0, 1).
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.theory.capacity`.
    confidence_level : float, default=0.95
        Level of `tail_exponent_interval_`, between 0 and 1.

    Attributes
    ----------
    n_tokens_ : int
        Number of tokens seen: the window that every figure here refers to.
    n_alive_ : int
        Number of alive features F.
    alive_ : ndarray of shape (n_alive_,), int64
        Latent of each row of the table.
    table_ : ndarray of shape (n_alive_, 3), float64
        The feature table. Its columns are importance E[z²], firing rate P(z ≠ 0) and mean E[z], each
        over all tokens; its rows stand in order of falling importance, equal ones in order of latent.
    mean_l0_ : float
        Mean number of alive features that fire on a token, L0.
    alpha_ : float
        Sparsity, 1 − L0/F.
    capacity_ : float
        Features per dimension, g(α).
    critical_width_ : float
        Width d* = F/g(α), in dimensions.
    tail_exponent_ : float
        Exponent β of the density p(I) ∝ I^−β of the largest importances; NaN with fewer than 51
        features of distinct importance.
    tail_exponent_interval_ : tuple of (float, float)
        Its confidence interval, given where the tail starts.
    tail_start_ : float
        Importance at which the tail starts.
    n_features_in_ : int
        Number of latents, alive or not.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the latents, if `fit` was given a DataFrame with names.

    See Also
    --------
    SparseAutoencoder : Learns the codes.
    FloorPredictor : Predicts loss floors from the feature table.
    power_law_tail : The fit behind `tail_exponent_`.

    Notes
    -----
    Importance :math:`I_j = \mathbb{E}[z_j^2]`, the bound on the firing rate and
    :math:`\alpha = 1 - L_0/F` over alive features are those of [1]_, Section 5.2.

    Which latents count as alive depends on how many tokens were looked at. Over `n_tokens_` tokens
    the smallest firing rate above zero is 1/n_tokens_, so that with fewer than 1/min_firing_rate
    tokens (100,000 by default) a single firing is enough, and a latent that fires more rarely than
    the window can show counts as dead. Compare tables of the same window only.

    Memory is that of three float64 sums a latent, whatever the number of batches. Sums are kept
    in float64 for codes of any dtype; a stored zero is no firing, and a negative code is one. The squared
    norms of rows are counted by their power of 2, which tells the share of the largest of them.
    Attributes are computed from the sums when first asked for and kept until more codes come.

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

    # `codes` are this estimator's data: they are not routed as metadata.
    __metadata_request__fit: ClassVar = {"codes": UNUSED}
    __metadata_request__partial_fit: ClassVar = {"codes": UNUSED}
    __metadata_request__transform: ClassVar = {"codes": UNUSED}

    def __init__(
        self,
        *,
        min_firing_rate: float = 1e-5,
        capacity: CapacityMethod = "asymptotic",
        confidence_level: float = 0.95,
    ) -> None:
        self.min_firing_rate = min_firing_rate
        self.capacity = capacity
        self.confidence_level = confidence_level

    def fit(self, codes: Any, y: Any = None) -> FeatureStatistics:
        """Measure all features on `codes`, forgetting what was seen before.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of a sparse autoencoder. A generator, or a list of matrices, is read batch by batch,
            one at a time.
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
            If the largest 0.1% of the rows that fire have 100 times the mean squared norm or more.
        """
        self._check_parameters()
        self._set_totals(*self._measure(codes, reset=True))
        _ = self.table_  # raises if no feature is alive
        return self

    def partial_fit(self, codes: Any, y: Any = None) -> FeatureStatistics:
        """Add `codes` to what was seen before.

        The attributes follow when they are next asked for, so a call costs no more than the sums. What `fit` warns
        of is told then.

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
            As `fit`, except that features may all be dead so far. Nothing is added then.
        """
        self._check_parameters()
        if not hasattr(self, "n_tokens_"):
            self._set_totals(*self._measure(codes, reset=True))
        else:
            totals, n_tokens, energies = self._measure(codes, reset=False)
            self._set_totals(self._totals + totals, self.n_tokens_ + n_tokens, self._energies + energies)
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add what another worker saw.

        Parameters
        ----------
        other : FeatureStatistics
            Fitted statistics of other tokens and the same latents; it is left as it is. The parameters
            of `self` hold for the result.

        Returns
        -------
        self : FeatureStatistics
            Statistics of the tokens of both, equal to those of one pass up to rounding.

        Raises
        ------
        NotFittedError
            If either has seen no codes.
        ValueError
            If `other` is something else, or has another number of latents.
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
            self._totals + other._totals, self.n_tokens_ + other.n_tokens_, self._energies + other._energies
        )
        return self

    def fit_transform(self, codes: Any, y: Any = None) -> Any:
        """Measure all features on `codes` and return the feature table.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of a sparse autoencoder; they are read once.
        y : None
            Ignored; here by convention.

        Returns
        -------
        table : ndarray of shape (n_alive_, 3), float64, or DataFrame
            A copy of `table_`.
        """
        return self._in_container(self.fit(codes).table_.copy())

    def transform(self, codes: Any) -> Any:
        """Measure on other codes the features that were found alive in `fit`, in the same order.

        Parameters
        ----------
        codes : {array-like, CSR} of shape (n_tokens, n_latents), or iterable of such batches
            Codes of the same autoencoder, for example on held-out text.

        Returns
        -------
        table : ndarray of shape (n_alive_, 3), float64, or DataFrame
            Importance, firing rate and mean on `codes`. Row i is the feature of latent ``alive_[i]``,
            so importance need not fall, and is 0 for a feature that does not fire here.

        Raises
        ------
        NotFittedError
            If nothing was fitted.
        ValueError
            If codes are empty, not finite or have another number of latents than in `fit`.
        """
        check_is_fitted(self, "n_tokens_")
        alive = self.alive_
        totals, n_tokens, _ = self._measure(codes, reset=False)
        return self._in_container(_table(totals, n_tokens, alive))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of the table.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Only checked against the number and names of the latents in `fit`.

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
        alpha = 1.0 - mean_l0 / n_alive
        if is_too_dense(alpha):
            warn_caller(
                f"{mean_l0:,.1f} of {n_alive:,} alive latents fire on a token: alpha_={alpha:.3f} is below 0.632, out "
                "of the range of Eq. 1, and the importances are not those of single features. The autoencoder has not "
                "converged, or its sparsity penalty is too weak: train it for longer, or with a stronger one.",
                ConvergenceWarning,
            )
        few, all_rows, share = _largest_rows(self._energies)
        if share * all_rows >= _OUTLYING * few:
            warn_caller(
                f"{few:,} of the {all_rows:,} rows that fire carry {share:.0%} of the second moment of the codes, and "
                "move all importances. Such rows are attention sinks or padding, most often: drop them "
                "before the autoencoder is trained, by skip_first where they stand at the start of sequences.",
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
        return power_law_tail(self.table_[:, 0], confidence_level=self.confidence_level)

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
        _check_confidence_level(self.confidence_level)
        features_per_dimension(np.array(0.99), self.capacity, "capacity")  # refuses it before the long work

    def _measure(self, codes: Any, *, reset: bool) -> tuple[np.ndarray, int, np.ndarray]:
        """Sum squares, firings and values of each latent, (3, n_latents); count tokens, and rows by squared norm."""
        totals, n_tokens, energies = np.zeros((3, 1)), 0, _count_energies(np.empty(0))
        if not isinstance(codes, Iterator):
            codes = plain_array(codes, "codes")
        for batch in codes if is_stream(codes) else [codes]:
            checked = self._checked(batch, reset=reset and n_tokens == 0)
            sums, of_rows = _sparse_totals(checked) if sp.issparse(checked) else _dense_totals(checked)
            totals, energies = totals + sums, energies + _count_energies(of_rows)
            n_tokens += checked.shape[0]
            del batch, checked  # before the stream makes the next one
        if not n_tokens:
            raise ValueError("codes gave no batch; give an iterable of at least one, and a generator only once.")
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(totals).all() and np.isfinite(totals[0].sum())
        if not finite:
            raise ValueError("codes are so large that their squares overflow float64; scale them down.")
        return totals, n_tokens, energies

    def _checked(self, batch: Any, *, reset: bool) -> Any:
        """Read one batch of codes, an array or CSR."""
        plain = plain_array(batch, "codes")
        check_csr(plain, "codes")
        try:
            checked = validate_data(self, plain, reset=reset, accept_sparse="csr", dtype="numeric")
            if checked.dtype.kind == "O":  # of a list of lists
                checked = checked.astype(np.float64)
        except (OverflowError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"codes={shown(batch)} hold what float64 can't: {error}; give finite numbers.") from error
        return plain_array(checked, "codes")  # columns of a DataFrame may hold dates

    def _set_totals(self, totals: np.ndarray, n_tokens: int, energies: np.ndarray) -> None:
        self._totals, self.n_tokens_, self._energies = totals, n_tokens, energies
        for name in ("alive_", "table_", "_tail"):
            self.__dict__.pop(name, None)

    def _in_container(self, table: np.ndarray) -> Any:
        # scikit-learn would give the rows the index of the codes, which are tokens; ours are latents.
        if _get_output_config("transform", self)["dense"] != "pandas":
            return table
        import pandas as pd

        return pd.DataFrame(table, index=pd.Index(self.alive_, name="latent"), columns=list(COLUMNS))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def resampled_tables(
    blocks: Sequence[FeatureStatistics],
    *,
    n_resamples: int = 200,
    random_state: int | np.random.RandomState | None = None,
) -> Iterator[np.ndarray]:
    """Feature tables as other draws of the tokens would have given them: a bootstrap over blocks of tokens.

    Neighbouring tokens are alike, so that whole blocks are drawn, with replacement, and not tokens.

    Parameters
    ----------
    blocks : sequence of FeatureStatistics
        Statistics of different tokens and the same latents, of which each saw one block: some documents,
        or some thousand tokens in a row.
    n_resamples : int, default=200
        Number of tables.
    random_state : int, RandomState or None, default=None
        Seed of the draws.

    Returns
    -------
    tables : iterator of ndarray of shape (n_alive, 3), float64
        Features that are alive on all blocks together, by their importance there.

    Raises
    ------
    ValueError
        If there are fewer than 2 blocks, they differ in their number of latents, or `n_resamples` is below 1.
    TypeError
        If `blocks` holds something else.
    NotFittedError
        If a block has seen no codes.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FeatureStatistics
    >>> from geofloor.features import resampled_tables
    >>> codes = np.abs(np.random.default_rng(0).standard_normal((8, 100, 3)))
    >>> blocks = [FeatureStatistics().fit(block) for block in codes]
    >>> [table.shape for table in resampled_tables(blocks, n_resamples=2, random_state=0)]
    [(3, 3), (3, 3)]
    """
    n_resamples = check_number("n_resamples", n_resamples, 1, whole=True)
    blocks = read_blocks(blocks)
    rng = check_random_state(random_state)
    together = clone(blocks[0])
    together.n_features_in_ = blocks[0].n_features_in_
    together._set_totals(np.zeros_like(blocks[0]._totals), 0, np.zeros_like(blocks[0]._energies))
    for block in blocks:
        together.merge(block)
    totals = np.stack([block._totals[:, together.alive_] for block in blocks])
    return _draws(totals, np.array([block.n_tokens_ for block in blocks]), n_resamples, rng)


def read_blocks(blocks: Any) -> list[FeatureStatistics]:
    """Read statistics of at least two blocks of tokens.

    Parameters
    ----------
    blocks : iterable of FeatureStatistics
        Fitted statistics.

    Returns
    -------
    blocks : list of FeatureStatistics
        The same.

    Raises
    ------
    ValueError
        If there are fewer than 2.
    TypeError
        If `blocks` holds something else.
    NotFittedError
        If a block has seen no codes.

    Examples
    --------
    >>> from geofloor import FeatureStatistics
    >>> from geofloor.features._statistics import read_blocks
    >>> len(read_blocks(FeatureStatistics().fit([[1.0, 0.0], [0.0, 2.0]]) for _ in range(3)))
    3
    """
    remedy = "give a sequence of fitted FeatureStatistics, one for each block of tokens"
    read = list(check_iterable("blocks", blocks, remedy))
    for place, block in enumerate(read):
        check_is_fitted(check_object(f"blocks[{place}]", block, FeatureStatistics, remedy), "n_tokens_")
    if len(read) < 2:
        raise ValueError(f"blocks has {len(read)} statistics; a bootstrap needs at least 2, and better 20.")
    return read


def _draws(
    totals: np.ndarray, n_tokens: np.ndarray, n_resamples: int, rng: np.random.RandomState
) -> Iterator[np.ndarray]:
    n_blocks = len(n_tokens)
    for _ in range(n_resamples):
        times = np.bincount(rng.randint(n_blocks, size=n_blocks), minlength=n_blocks)
        yield np.ascontiguousarray(np.tensordot(times, totals, axes=1).T) / (times @ n_tokens)


def _table(totals: np.ndarray, n_tokens: int, alive: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(totals[:, alive].T) / n_tokens


def _sparse_totals(codes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sum squares, firings and values of each latent, and squares of each row that has any."""
    if not codes.has_canonical_format:  # entries given twice stand for their sum
        codes = codes.copy()
        codes.sum_duplicates()
    n_latents = codes.shape[1]
    totals = np.zeros((3, n_latents))
    squares, firings, sums = totals
    starts = codes.indptr[:-1][codes.indptr[1:] > codes.indptr[:-1]]
    energies = np.zeros(len(starts))
    with np.errstate(over="ignore"):  # found by the caller
        for start in range(0, codes.nnz, chunk := max(_CHUNK, 2 * n_latents)):
            part = slice(start, min(start + chunk, codes.nnz))
            latents = codes.indices[part].astype(np.intp, copy=False)
            values = codes.data[part].astype(np.float64)
            fires = values != 0
            firings += np.bincount(latents if fires.all() else latents[fires], minlength=n_latents)
            sums += np.bincount(latents, values, minlength=n_latents)
            values *= values
            squares += np.bincount(latents, values, minlength=n_latents)
            # The first row of a chunk may have begun before it.
            first, last = np.searchsorted(starts, start, side="right") - 1, np.searchsorted(starts, part.stop)
            energies[first:last] += np.add.reduceat(values, np.maximum(starts[first:last] - start, 0))
    return totals, energies


def _dense_totals(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum squares, firings and values of each latent, and squares of each row."""
    totals, energies = np.zeros((3, codes.shape[1])), np.zeros(codes.shape[0])
    squares, firings, sums = totals
    with np.errstate(over="ignore"):
        for rows in gen_batches(codes.shape[0], max(1, _CHUNK // codes.shape[1])):
            values = codes[rows].astype(np.float64)
            firings += np.count_nonzero(values, axis=0)
            sums += values.sum(axis=0)
            squares += np.square(values, out=values).sum(axis=0)
            energies[rows] = values.sum(axis=1)
    return totals, energies


def _count_energies(energies: np.ndarray) -> np.ndarray:
    """Count squared norms above 0 by their power of 2, and add them up, (2, n_powers)."""
    energies = energies[energies > 0.0]
    powers, n_powers = np.frexp(energies)[1] - _LOWEST_POWER, 1025 - _LOWEST_POWER
    counts, sums = np.bincount(powers, minlength=n_powers), np.bincount(powers, energies, n_powers)
    return np.stack([counts, sums]).astype(np.float64)


def _largest_rows(energies: np.ndarray) -> tuple[int, int, float]:
    """Number of the largest 0.1% of rows, of all rows, and their share of the sum.

    Of rows within one power of 2, those that are among the largest count with their mean.
    """
    counts, sums = energies[:, ::-1]
    n_rows, total = int(counts.sum()), sums.sum()
    few = max(1, math.ceil(_FEW_ROWS * n_rows))
    taken = np.minimum(counts, np.maximum(few - (np.cumsum(counts) - counts), 0.0))
    largest = sums @ np.divide(taken, counts, out=np.zeros_like(counts), where=counts > 0.0)
    return few, n_rows, float(largest / total) if total > 0.0 else 0.0


def _check_confidence_level(level: float) -> None:
    check_number("confidence_level", level, 0.0, 1.0, open_low=True, open_high=True)
