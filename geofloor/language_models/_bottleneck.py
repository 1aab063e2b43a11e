"""A lower bound on the loss of students of a width, from their narrow unembedding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.schema import number
from geofloor._files.tables import array, frame
from geofloor._training.callbacks import CallbackSupportMixin, FitTasks
from geofloor._training.devices import memory_advice, to_device
from geofloor._training.progress import progress_bar
from geofloor._training.seeds import read_random_state
from geofloor._validation import check_flag, check_number, shown
from geofloor.language_models._divergence import LazyLogits, Targets
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._low_rank import LowRankLogits, project_logits, without_masked_tokens
from geofloor.language_models._low_rank_fit import LowRankFit, default_steps
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._positions import Positions, tokens_to_exclude
from geofloor.language_models._saved import SaveWithoutModelsMixin
from geofloor.language_models._token_rows import TokenRows
from geofloor.theory._widths import WidthPredictorMixin, read_targets, read_widths

_TESTED = 4  # positions in the sequences that test a fit, per position drawn from them
_LOSSES = "low", "high", "standard_error", "high_standard_error", "start"
_RISE = 0.02  # share by which a wider width may end higher without a warning


class BottleneckPredictor(
    ShortReprMixin,
    SharedParametersMixin,
    SaveWithoutModelsMixin,
    PortablePickleMixin,
    WidthPredictorMixin,
    CallbackSupportMixin,
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
        Number of positions that each bound is measured on: ``low`` on fitted positions, ``high`` on others.
    n_fitted : int, default=20480
        Number of positions that the unembedding is fitted to, if tokens give as many. It should be 40 times the widest
        width: with few positions the bounds lie far apart. Other sequences test it: as many as hold four times
        `n_positions`, and at most half.
    n_steps : int or None, default=None
        Steps of the fit at each width, each over a minibatch of 256 positions or more. None takes 200, and down to 20
        for large vocabularies and widths.
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
        token; their standard errors over positions, ``standard_error`` and ``high_standard_error``; and ``start``, the
        loss on the fitted positions of the unembedding that the fit starts from, with its rows refined. ``low`` is at
        most ``start`` and at most ``high``. Neither ``low`` nor ``high`` rises with the width.

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
    student's loss is one of the values minimized over, so R is at most the student's floor. R is only bracketed.

    **What is certain.** ``high`` is the loss of logits of rank d that were found, with W and b from fitted positions
    and only h from the positions of ``high``. So R is at most ``high``, up to the sampling error.

    **What is not.** On a sample of positions, the minimum over W, b and h is in expectation at most R. ``low`` is the
    lowest loss *found* on the fitted positions, so it is an estimate of a lower bound. The problem is not convex in W
    and h together, and no certificate is given. Strong convexity gives a vacuous one: the curvature of the KL differs
    by position and vanishes for improbable tokens, and low-rank approximation with weights that differ by entry is
    NP-hard [3]_. Two errors have opposite signs. W fits errors of the sample, so that ``low`` falls below R; steps that
    end early leave it too high. The second error shows: with more steps, ``high`` falls as well. Where a decision
    depends on ``low``, double `n_steps`; if ``high`` falls by a few per cent, ``low`` may be too high by as much. Where
    ``high`` and ``low`` are far apart, give more positions.

    **How.** W starts as the best approximation in squared logits, a truncated singular value decomposition. Conjugate
    gradients refine its rows h, a convex problem at each position, until a step gains less than 1%. This gives
    ``start``. Each step of the fit then draws a minibatch, moves its rows by one step of conjugate gradients and then W
    and b by Adam, with a step size relative to the root of the loss. At the end, the rows are refined once more. If the
    result is no better than ``start``, the start is kept, and ``high`` is measured with its W and b. The fitted
    positions alone decide this, so that the choice does not bias ``high``. In tests, the result is within 2% of that of
    other methods. The cost of a width does not grow with `n_fitted`, except for the decomposition and the teacher's
    pass. The whole vocabulary counts: at T = 2 no small part of it carries the loss, and a single token for "the rest"
    would make ``low`` unsound, because the logarithm of its probability is not linear in h.

    ``predict(widths, return_bounds=True)`` gives ``low`` and ``high`` along the curve, and ``return_interval=True``
    adds the sampling error: it moves the logarithm of each bound outwards, by a normal quantile times the relative
    standard error. If ``low`` is below R, the interval holds R with a probability of at least `level`. The standard
    errors treat positions as independent; where many come from each sequence, they are too small.

    With a scikit-learn that has `sklearn.callback`, callbacks given to `set_callbacks` see one task per width, with its
    row of `curve_` as ``metadata``. They can't stop the fit, because predictions need all widths.

    The bound holds for students with one linear unembedding of d columns, as nearly all have. It concerns the last
    matrix alone: students also have to compute in d dimensions, and end well above the bound.

    References
    ----------
    .. [1] Yang, Dai, Salakhutdinov, Cohen (2018), "Breaking the Softmax Bottleneck: A High-Rank RNN Language Model".
    .. [2] Godey, de la Clergerie, Sagot (2024), "Why do small language models underperform? Studying Language Model
       Saturation via the Softmax Bottleneck".
    .. [3] Gillis, Glineur (2011), "Low-Rank Matrix Approximation with Weights or Missing Data Is NP-Hard".

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
    _saved: ClassVar = {
        "rank_": number(2, 2**24, whole=True),
        "curve_": frame(
            width=array("int64"),
            low=array(),
            high=array(),
            standard_error=array(),
            high_standard_error=array(),
            start=array(),
        ),
    }

    def __init__(
        self,
        teacher: Any,
        *,
        temperature: float = 2.0,
        widths: Sequence[int] | None = None,
        n_points: int = 12,
        n_positions: int = 4096,
        n_fitted: int = 20_480,
        n_steps: int | None = None,
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
        self.n_fitted = n_fitted
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
        self._n_fitted = check_number("n_fitted", self.n_fitted, 2, whole=True)
        self._n_steps = None
        if self.n_steps is not None:
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
        tested = order[1::2][: -(-_TESTED * self._n_positions // rows.length)]
        generator = np.random.default_rng(order)
        advice = f"lower batch_size={self._batch_size}, n_positions={self._n_positions} or n_fitted={self._n_fitted}"
        with evaluating(module), memory_advice(advice):
            drawn = [
                self._draw(model, rows, np.sort(part), number, Positions(0, excluded), generator, device)
                for part, number in ((np.setdiff1d(order, tested), self._n_fitted), (tested, self._n_positions))
            ]
        with memory_advice(advice):
            fitted, others = (
                LowRankFit(Targets(part, self._temperature, keep=True)) for part in without_masked_tokens(drawn)
            )
            start = LowRankLogits(fitted.targets)
        if start.rank < 2:
            raise ValueError(
                f"The teacher's logits have rank {start.rank} on these tokens, so that no student is too narrow for "
                "them; check the teacher, or give more text."
            )
        self.rank_ = start.rank
        found: list[dict[str, float]] = []
        grid = self._grid(start.rank)
        with (
            memory_advice(advice),
            FitTasks(self, tokens) as tasks,
            progress_bar("bottleneck", total=len(grid), unit="width", verbose=self.verbose) as bar,
        ):
            tasks.begin(len(grid), "width")
            for width in grid.tolist():
                tasks.begin_task()
                losses = self._losses(start, fitted, others, width, generator)
                found.append({"width": width, **dict(zip(_LOSSES, losses, strict=True))})
                bar.update()
                tasks.end_task(found[-1])
            self.curve_ = _monotone(pd.DataFrame(found))
            self._draw_curve()
            tasks.end()
        return self

    def _draw_curve(self) -> None:
        """Interpolate the measurements over widths."""
        self.critical_width_ = float(self.rank_)
        position = np.log1p(self.curve_["width"])
        ends = np.maximum(self.curve_[["low", "high"]].to_numpy(), 1e-30)
        self._log_ends = PchipInterpolator(position, np.log(ends))
        self._relative_errors = PchipInterpolator(
            position, self.curve_[["standard_error", "high_standard_error"]].to_numpy() / ends
        )
        self.zero_width_loss_ = float(self.predict([0])[0])

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        widths, losses = state["curve_"]["width"].to_numpy(), state["curve_"].iloc[:, 1:].to_numpy()
        if widths[0] != 0 or widths[-1] != self.rank_ - 1 or losses.min() < 0.0:
            raise ValueError(f"its curve is not of widths from 0 to {self.rank_ - 1} with losses of at least 0")
        if (np.diff(losses[:, :2], axis=0) > 0.0).any() or (losses[:, 0] > losses[:, 1]).any():
            raise ValueError("its bounds cross, or rise with the width")
        self._draw_curve()

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
        number: int,
        positions: Positions,
        generator: np.random.Generator,
        device: torch.device,
    ) -> LazyLogits:
        """Draw a number of positions from some of the sequences, and return the teacher's logits there, shuffled."""
        share = min(number / (len(sequences) * rows.length), 1.0)
        kept: list[LazyLogits] = []
        for begin in range(0, len(sequences), self._batch_size):
            batch = rows.take(sequences[begin : begin + self._batch_size])
            drawn = (generator.random(batch.ids.size) < share) & positions.included(batch.ids).reshape(-1)
            if batch.mask is not None:
                drawn &= batch.mask.reshape(-1)
            kept.append(model.logits(to_device(batch.ids, device)).at(to_device(np.flatnonzero(drawn), device)))
        states = torch.cat([each.rows for each in kept])
        states = states[to_device(generator.permutation(len(states)), device)]
        if len(states) < 2:
            raise ValueError(
                f"tokens give {len(states)} position(s) to fit; give more text, or raise n_positions and n_fitted."
            )
        weight, bias = (None if each is None else each.detach() for each in kept[0][1:])
        return LazyLogits(states, weight, bias)

    def _losses(
        self, start: LowRankLogits, fitted: LowRankFit, others: LowRankFit, width: int, generator: np.random.Generator
    ) -> tuple[float, ...]:
        """Compute the mean losses on fitted and on other positions, the lower first, their errors, and the start's.

        ``high`` takes the unembedding that is better on the fitted positions. The other positions only measure it: the
        smaller of two losses on them would be too low in expectation, and take twice the time.
        """
        n_chunks = -(-self._n_positions // fitted.targets.chunk_rows)
        rows, weight, bias = start.student(width)
        student = LazyLogits(rows, weight, bias)
        refined, kls = fitted.refine_rows(student, n_chunks) if width else (rows, fitted.losses(student, n_chunks))
        first = max(float(kls.double().mean()), 0.0)
        if width:
            n_steps = default_steps(len(weight), width) if self._n_steps is None else self._n_steps
            before = rows[: len(refined)].clone()
            fitted.fit(student, n_steps, generator)
            unmoved = (rows[: len(refined)] == before).all(dim=1)  # drawn by no step: those of the start are closer
            rows[: len(refined)] = torch.where(unmoved[:, None], refined, rows[: len(refined)])
            moved = fitted.refine_rows(student, n_chunks)[1]
            if float(moved.double().mean()) < first:
                kls = moved
            else:  # the steps did harm
                _, weight, bias = start.student(width)
        of_others = LazyLogits(project_logits(others.targets, weight, bias, start.mean_probabilities), weight, bias)
        high = others.refine_rows(of_others)[1] if width else others.losses(of_others)
        found = sorted(
            (max(float(each.mean()), 0.0), float(each.std() / len(each) ** 0.5))
            for each in (kls.double(), high.double())
        )
        (low, error), (high_, high_error) = found
        return low, high_, error, high_error, first

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
            Lower and upper bound on the least loss, ``low`` and ``high``, if `return_bounds`. They hold up to sampling
            errors, and the lower one up to the error of the fit.
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

        No narrower student can reach the target, however it is trained, up to the error of the fit.

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


def _monotone(curve: pd.DataFrame) -> pd.DataFrame:
    """Replace losses by those of a narrower width where these are lower, with a warning if they are much lower.

    Logits of a width are also logits of every wider one, so the best found for either is a bound for both.
    """
    for name, error in (("low", "standard_error"), ("high", "high_standard_error")):
        losses = curve[name].to_numpy()
        lowest = np.minimum.accumulate(losses)
        risen = curve["width"][losses > (1.0 + _RISE) * lowest].tolist()
        if risen:
            warnings.warn(
                f"The losses found at widths {shown(risen)} are above those of a narrower width; those of the narrower "
                "one are reported. Raise n_steps, or give more positions.",
                ConvergenceWarning,
                stacklevel=3,
            )
        at = np.maximum.accumulate(np.where(losses == lowest, np.arange(len(losses)), 0))
        curve[name], curve[error] = lowest, curve[error].to_numpy()[at]
    return curve
