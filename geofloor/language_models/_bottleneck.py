"""A lower bound on the loss of students of a width, from their narrow unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._training.devices import memory_advice, to_device
from geofloor._training.progress import progress_bar
from geofloor._training.schedules import warmup_cosine
from geofloor._training.seeds import read_random_state
from geofloor._validation import check_flag, check_number, shown
from geofloor.language_models._divergence import ChunkedLoss, LazyLogits, LossTerms, Targets, row_kls
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._low_rank import LowRankLogits, project_logits, without_masked_tokens
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._positions import Positions, tokens_to_exclude
from geofloor.language_models._token_rows import TokenRows
from geofloor.theory._widths import WidthPredictorMixin, read_targets, read_widths

_LEARNING_RATE = 0.1  # of Adam, in logits
_WARMUP_STEPS = 10


class BottleneckPredictor(
    ShortReprMixin,
    SharedParametersMixin,
    PortablePickleMixin,
    WidthPredictorMixin,
    BaseEstimator,
):
    r"""Predict the least loss of any student of a width, by the softmax bottleneck.

    A student of width d computes logits from d numbers per position and one unembedding matrix, so its logits over
    all positions form a matrix of rank d. The teacher's logits have the rank of the teacher's width. The best
    approximation of the teacher's next-token distributions by logits of rank d therefore loses less than every
    student of that width, for any architecture before the unembedding, any initialization and any length of training.
    It needs no features, no choice of a block and no trained student.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        As in `DistilledStudent`. It is not changed.
    temperature : float, default=2.0
        T, by which logits are divided, as in `DistilledStudent`.
    widths : sequence of int, default=None
        Widths that the bound is measured at, besides 0. Between them, predictions follow a monotone curve. With None,
        `n_points` widths are spread evenly in their logarithm.
    n_points : int, default=12
        Number of widths if `widths` is None.
    n_positions : int, default=4096
        Number of positions that logits of low rank are fitted to; as many others test them. It should be many times
        the widest width: with few positions the bounds lie far apart.
    n_steps : int, default=150
        Steps of the fit, each over all positions.
    batch_size : int, default=8
        Sequences per forward pass of the teacher.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end. Its positions do not count.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions do not count: ids, or ``"special"`` for the special tokens of a teacher given by name.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name. It is loaded in float32 unless they hold a
        ``dtype``.
    n_vocabulary : int or None, default=None
        Number of tokens that count, the first ones. Rows of the unembedding beyond it, as those added to round up its
        size, get no probability. None counts all.
    device : str, default="auto"
        As in `DistilledStudent`.
    verbose : int, default=0
        Above 0, a progress bar is shown.
    random_state : int, RandomState instance or None, default=None
        Seed for the choice of positions.

    Attributes
    ----------
    rank_ : int
        Rank of the teacher's logits, at most the teacher's width. From this width on, the bound is 0.
    critical_width_ : float
        Alias of `rank_`, for consistency with the other predictors.
    zero_width_loss_ : float
        Loss at width 0, in nats per token, where all positions have one distribution. `zero_width_kl` measures it on
        all tokens, the predictor on the positions drawn.
    curve_ : DataFrame
        Measurements at each ``width``: ``low`` and ``high``, the losses on fitted and on other positions in nats per
        token, and their standard errors over positions, ``standard_error`` and ``high_standard_error``.

    See Also
    --------
    LossForecaster : Forecasts students' losses from this bound and one or two runs.
    AblationPredictor : Measures the loss without the features that Eq. 2 drops. It is no bound.

    Notes
    -----
    With :math:`p_n` the teacher's distribution at position n and T the temperature, the loss of width d is

    .. math:: R(d) = \min_{W \in \mathbb{R}^{V \times d},\, b}\; \mathbb{E}_n \min_{h_n \in \mathbb{R}^d}
        \mathrm{KL}\bigl(p_n \,\Vert\, \mathrm{softmax}((W h_n + b) / T)\bigr),

    the limit on expression that Yang et al. [1]_ describe and Godey et al. [2]_ find in small language models. A
    student's loss is one of the values minimized over, so R is at most the student's floor. R is only
    bracketed. On a sample of positions the minimum is, in expectation, lower than over all text: this is ``low``. With
    W and b from that sample and h fitted anew, other positions lose more than R: this is ``high``. R lies between them,
    up to the sampling error and the error of the fit. Adam starts from the best approximation in squared logits and
    ends near a minimum, in tests within 2% of the result of other methods. The problem is not convex, and nothing
    certifies the lowest minimum.

    ``predict(widths, return_bounds=True)`` gives ``low`` and ``high`` along the curve, and ``return_interval=True``
    adds the sampling error: it moves the logarithm of each bound outwards, by a normal quantile times the relative
    standard error. The interval then holds R with a probability of at least `level`. The standard errors treat
    positions as independent; where many come from each sequence, they are too small.

    The bound holds for students with one linear unembedding of d columns, as nearly all have. It concerns the last
    matrix alone: students also have to compute in d dimensions, and end well above the bound.

    References
    ----------
    .. [1] Yang, Dai, Salakhutdinov, Cohen (2018), "Breaking the Softmax Bottleneck: A High-Rank RNN Language Model".
    .. [2] Godey, de la Clergerie, Sagot (2024), "Why do small language models underperform? Studying Language Model
       Saturation via the Softmax Bottleneck".

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import BottleneckPredictor
    >>> from geofloor.datasets import load_teacher
    >>> tokens = np.random.default_rng(0).integers(2048, size=(16, 32))
    >>> bound = BottleneckPredictor(load_teacher().path, widths=[16, 64], random_state=0).fit(tokens)
    >>> losses, bounds = bound.predict([0, 16, 64, 128], return_bounds=True)
    >>> bool((np.diff(losses) < 0).all()), float(losses[-1]), bool((bounds[:, 0] <= losses).all())
    (True, 0.0, True)
    """

    _shared_parameters = ("teacher",)

    def __init__(
        self,
        teacher: Any,
        *,
        temperature: float = 2.0,
        widths: Sequence[int] | None = None,
        n_points: int = 12,
        n_positions: int = 4096,
        n_steps: int = 150,
        batch_size: int = 8,
        pad_token_id: int | None = None,
        exclude_tokens: Any = None,
        model_kwargs: dict[str, Any] | None = None,
        n_vocabulary: int | None = None,
        device: str = "auto",
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.teacher = teacher
        self.temperature = temperature
        self.widths = widths
        self.n_points = n_points
        self.n_positions = n_positions
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.pad_token_id = pad_token_id
        self.exclude_tokens = exclude_tokens
        self.model_kwargs = model_kwargs
        self.n_vocabulary = n_vocabulary
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, tokens: Any, y: Any = None) -> BottleneckPredictor:
        """Measure the loss of logits of each rank.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids, preferably those that students are evaluated on; at least two sequences.
        y : None
            Ignored.

        Returns
        -------
        self : BottleneckPredictor
            The fitted predictor.

        Raises
        ------
        TypeError
            If teacher is an object of another kind.
        ValueError
            If teacher and tokens do not fit each other, a parameter is out of range, or the teacher's logits are not
            finite or are the same everywhere. Tokens with logit −inf at every position are left out.
        MemoryError
            If the device has too little memory; the message names what to lower.
        """
        # Plain integers, because small integers of NumPy overflow.
        self._n_points = check_number("n_points", self.n_points, 2, whole=True)
        self._n_positions = check_number("n_positions", self.n_positions, 2, whole=True)
        self._n_steps = check_number("n_steps", self.n_steps, 1, whole=True)
        self._batch_size = check_number("batch_size", self.batch_size, 1, whole=True)
        self._temperature = check_number("temperature", self.temperature, 1e-6)
        if self.widths is not None:
            self._widths = read_widths(self.widths)
            if (self._widths != np.floor(self._widths)).any():
                raise ValueError(f"widths={shown(self.widths)} must be whole numbers of dimensions.")
        device, module = load_language_model(self.teacher, self.model_kwargs, self.device)
        model = LanguageModel(module, "the teacher", n_vocabulary=self.n_vocabulary)
        excluded = tokens_to_exclude(self.exclude_tokens, self.teacher, self.model_kwargs, model.n_tokens)
        rows = model.token_rows(tokens, "tokens", self.pad_token_id, excluded=excluded)
        if len(rows) < 2:
            raise ValueError("tokens has 1 sequence; give more, to fit logits on some and test them on others.")
        order = read_random_state(self.random_state).permutation(len(rows))
        generator = np.random.default_rng(order)
        advice = f"lower batch_size={self._batch_size} or n_positions={self._n_positions}"
        with evaluating(module), memory_advice(advice):
            drawn = [
                self._draw(model, rows, np.sort(part), Positions(0, excluded), generator, device)
                for part in (order[::2], order[1::2])
            ]
        fitted, others = (Targets(part, self._temperature, keep=True) for part in without_masked_tokens(drawn))
        with memory_advice(advice):
            start = LowRankLogits(fitted)
        if start.rank < 2:
            raise ValueError(
                f"The teacher's logits have rank {start.rank} on these tokens, so that no student is too narrow for "
                "them; check the teacher, or give more text."
            )
        self.rank_, self.critical_width_ = start.rank, float(start.rank)
        found, grid = [], self._grid(start.rank)
        with (
            memory_advice(advice),
            progress_bar("bottleneck", total=len(grid), unit="width", verbose=self.verbose) as bar,
        ):
            for width in grid:
                found.append((width, *self._losses(start, fitted, others, width)))
                bar.update()
        self.curve_ = pd.DataFrame(found, columns=["width", "low", "high", "standard_error", "high_standard_error"])
        self._draw_curve()
        self.zero_width_loss_ = float(self.predict([0])[0])
        return self

    def _draw_curve(self) -> None:
        """Interpolate log losses and relative errors over log width, after making the losses monotone.

        One more dimension never makes a loss higher: a rise means that its fit ended early. At width 0, where little
        is fitted, either sample may lose more, so the ends are sorted.
        """
        losses, errors = (
            self.curve_[names].to_numpy() for names in (["low", "high"], ["standard_error", "high_standard_error"])
        )
        lowest = np.minimum.accumulate(losses)
        at = np.maximum.accumulate(np.where(losses == lowest, np.arange(len(losses))[:, np.newaxis], 0))
        order = np.argsort(lowest, axis=1, kind="stable")
        ends = np.maximum(np.take_along_axis(lowest, order, axis=1), 1e-30)
        errors = np.take_along_axis(np.take_along_axis(errors, at, axis=0), order, axis=1)
        position = np.log1p(self.curve_["width"])
        self._log_ends = PchipInterpolator(position, np.log(ends))
        self._relative_errors = PchipInterpolator(position, errors / ends)

    def _grid(self, rank: int) -> np.ndarray:
        """Choose the whole widths to measure the bound at, from 0 to one below the rank."""
        last = rank - 1
        if self.widths is None:
            inner = np.rint(np.geomspace(1, max(last, 1), self._n_points)).astype(np.int64)
        else:
            inner = np.minimum(self._widths, rank).astype(np.int64)
        return np.unique(np.concatenate([[0], inner[inner < rank], [max(last, 0)]]))

    @torch.no_grad()
    def _draw(
        self,
        model: LanguageModel,
        rows: TokenRows,
        sequences: np.ndarray,
        positions: Positions,
        generator: np.random.Generator,
        device: torch.device,
    ) -> LazyLogits:
        """Draw positions from some of the sequences, and return the teacher's logits at them."""
        share = min(self._n_positions / (len(sequences) * rows.length), 1.0)
        kept: list[LazyLogits] = []
        for begin in range(0, len(sequences), self._batch_size):
            batch = rows.take(sequences[begin : begin + self._batch_size])
            drawn = (generator.random(batch.ids.size) < share) & positions.included(batch.ids).reshape(-1)
            if batch.mask is not None:
                drawn &= batch.mask.reshape(-1)
            kept.append(model.logits(to_device(batch.ids, device)).at(to_device(np.flatnonzero(drawn), device)))
        states = torch.cat([each.rows for each in kept])
        if len(states) < 2:
            raise ValueError(f"tokens give {len(states)} position(s) to fit; give more text, or raise n_positions.")
        weight, bias = (None if each is None else each.detach() for each in kept[0][1:])
        return LazyLogits(states, weight, bias)

    def _losses(self, start: LowRankLogits, fitted: Targets, others: Targets, width: int) -> tuple[float, ...]:
        """Compute the mean losses on the fitted and on other positions, and their standard errors."""
        rows, weight, bias = start.student(width)
        student = LazyLogits(rows, weight, bias)
        if width:
            self._descend(fitted, student)
        low = row_kls(student, fitted).double()
        student = LazyLogits(project_logits(others, weight, bias), weight, bias)
        if width:
            self._descend(others, student, rows_only=True)
        high = row_kls(student, others).double()
        errors = (float(each.std() / len(each) ** 0.5) for each in (low, high))
        return float(low.mean()), float(high.mean()), *errors

    def _descend(self, targets: Targets, student: LazyLogits, *, rows_only: bool = False) -> None:
        """Minimize the loss over the student's tensors, in place."""
        tensors: list[Any] = [student.rows] if rows_only else list(student)
        terms = LossTerms(targets, None, 1.0 / len(student.rows))
        for tensor in tensors:
            tensor.requires_grad_()
        optimizer = torch.optim.Adam(tensors, betas=(0.9, 0.95))
        for step in range(self._n_steps):
            factor = warmup_cosine(step, n_steps=self._n_steps, warmup_steps=min(_WARMUP_STEPS, self._n_steps // 2))
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * self._temperature * factor
            loss, _ = ChunkedLoss.apply(*student, terms)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for tensor in tensors:
            tensor.requires_grad_(False)
            tensor.grad = None

    def predict(
        self, widths: ArrayLike, *, return_bounds: bool = False, return_interval: bool = False, level: float = 0.9
    ) -> Any:
        """Predict the least loss at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions; fractions are rounded down.
        return_bounds : bool, default=False
            Whether to return bounds on the least loss as well.
        return_interval : bool, default=False
            Whether to return an interval for the least loss as well: the bounds, widened by their sampling error.
        level : float, default=0.9
            Probability that the interval holds the least loss.

        Returns
        -------
        losses : ndarray of shape (n_widths,), float64
            Losses in nats per token, the geometric means of the bounds.
        bounds : ndarray of shape (n_widths, 2), float64
            Lower and upper bound, ``low`` and ``high``, if `return_bounds`. No student ends below the lower bound, up
            to its sampling error.
        interval : ndarray of shape (n_widths, 2), float64
            Lower and upper end, if `return_interval`.

        Raises
        ------
        ValueError
            If a width is negative or not finite, `level` is not between 0 and 1, or both bounds and interval are asked
            for.
        """
        check_is_fitted(self)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        with_bounds, with_interval = (
            check_flag("return_bounds", return_bounds),
            check_flag("return_interval", return_interval),
        )
        if with_bounds and with_interval:
            raise ValueError("return_bounds=True and return_interval=True exclude each other; ask for one of them.")
        at = np.floor(read_widths(widths))
        position = np.log1p(np.minimum(at, self.curve_["width"].iloc[-1]))
        log_bounds = self._log_ends(position)
        bounds = np.exp(log_bounds)
        bounds[at >= self.rank_] = 0.0
        losses = np.sqrt(bounds.prod(axis=1))
        if with_interval:
            spread = norm.ppf((1.0 + level) / 2.0) * self._relative_errors(position)
            interval = np.exp(log_bounds + spread * [-1.0, 1.0])
            interval[at >= self.rank_] = 0.0
            return losses, interval
        return (losses, bounds) if with_bounds else losses

    def min_width(self, target: ArrayLike) -> Any:
        """Find the smallest whole width with a lower bound of at most a target loss.

        No narrower student can reach the target, however it is trained.

        Parameters
        ----------
        target : float or array-like
            Target loss, in nats per token.

        Returns
        -------
        width : int or ndarray of int64
            Smallest such width, in dimensions, 0 to `rank_`. Every target can be reached.

        Raises
        ------
        ValueError
            If a target is negative or not finite.
        """
        targets = read_targets(target, "target")
        _, bounds = self.predict(np.arange(self.rank_ + 1), return_bounds=True)
        # The lower bound falls to 0, so some width always reaches the target.
        found = len(bounds) - np.searchsorted(bounds[::-1, 0], targets, side="right")
        return int(found) if targets.ndim == 0 else found
