"""The loss floor in nats per token, measured by ablating features from the teacher."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedModel

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.estimators import check_not_left_out
from geofloor._files.schema import number
from geofloor._files.tables import array, frame, number_or_nan
from geofloor._training.devices import memory_advice, to_device
from geofloor._training.progress import progress_bar
from geofloor._validation import check_choice, check_flag, check_number, check_object
from geofloor.features import FeatureStatistics
from geofloor.features._dictionary_sums import Dictionary, check_methods
from geofloor.language_models._ablated_features import AblatedFeatures, Latents, PrincipalComponents
from geofloor.language_models._blocks import BlockSwap
from geofloor.language_models._dictionary_source import check_fit
from geofloor.language_models._divergence import Targets, row_kls, why_not_finite
from geofloor.language_models._extractor import ActivationExtractor
from geofloor.language_models._hook_names import OUTPUTS
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._positions import Positions, tokens_to_exclude
from geofloor.language_models._row_activations import row_activations, too_short
from geofloor.language_models._saved import SaveWithoutModelsMixin
from geofloor.language_models._sequence_means import covariance_of_means, mean_and_error
from geofloor.language_models._token_rows import TokenRows
from geofloor.theory._capacity import CapacityMethod
from geofloor.theory._widths import FeaturePredictorMixin, read_widths


class AblationPredictor(
    ShortReprMixin,
    SharedParametersMixin,
    SaveWithoutModelsMixin,
    PortablePickleMixin,
    FeaturePredictorMixin,
    BaseEstimator,
):
    r"""Predict a student's loss floor in nats per token, by ablating the dropped features from the teacher.

    A student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most important features, as in Eq. 2.
    Eq. 2 charges the other features by their squared activation. This predictor removes them from the teacher's
    residual stream, runs the rest of the teacher, and charges the KL divergence of its output from that of the intact
    teacher: a loss in the units of distillation.

    Parameters
    ----------
    teacher : PreTrainedModel, str or path-like
        A causal language model of ``transformers``, or its name on the hub or its folder. It is not changed.
    layer : int
        Block after which features are removed, from 0; negative indices count from the last.
    autoencoder : SparseAutoencoder or object, default=None
        Fitted on activations after that block: a `SparseAutoencoder`, or any object with the methods that
        `dictionary_report <geofloor.language_models.dictionary_report>` asks for and directions of norm 1. With None
        the features are the principal components of the activations, one per dimension, which need no training.
    statistics : FeatureStatistics, default=None
        Fitted on codes of `autoencoder`, for the order of the features, their means and the sparsity. With None they
        are measured on the tokens given to `fit`. Few tokens miss rare features, which makes the sparsity too low.
    temperature : float, default=2.0
        T, by which logits are divided, as in `DistilledStudent`.
    output : {"residual", "mlp", "attention"}, default="residual"
        Activations that the features are removed from, as in `ActivationExtractor`. Eq. 2 is about the residual stream.
        Features removed from the output of one MLP or attention stay in the rest of the teacher, so that their loss
        tells what they are worth there and is no floor of a student.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.theory.capacity`. Principal components have 1.
    above_own_width : bool, default=False
        Whether to subtract the loss at the teacher's own width, since a student as wide as the teacher can be the
        teacher and lose nothing.
    n_points : int, default=24
        Numbers of kept features at which the loss is measured, besides 0. Between them, predictions follow a monotone
        curve.
    skip_first : int, default=1
        Leading positions of each sequence that are not ablated, since they are left out of the activations. Their loss
        counts.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions are neither ablated nor counted: ids, or ``"special"`` for the special tokens of a
        teacher given by name. Use those left out of the activations.
    batch_size : int, default=8
        Sequences per forward pass.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end. Its positions do not count.
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

    Attributes
    ----------
    alpha_ : float
        Sparsity of the features; NaN for principal components.
    capacity_ : float
        Features per dimension.
    n_features_ : int
        Number of features F.
    critical_width_ : float
        Width from which the floor is 0: F / g, where nothing is removed. With `above_own_width` it is at most the
        teacher's own width.
    own_width_loss_ : float
        Loss at the teacher's own width, in nats per token, without the features that a student of that width drops.
    curve_ : DataFrame
        Measurements: ``kept`` features, ``kl`` in nats per token, and its ``standard_error`` over sequences.

    See Also
    --------
    FloorPredictor : Charges features by their squared activation, and needs no teacher.
    AffineCalibrator : Corrects for the difference between students and the ablated teacher.

    Notes
    -----
    A feature is removed by setting its activation to its mean (mean ablation), since a student gets a bias for free.
    With h the activations, z the codes, w the decoder's directions and D the dropped features,

    .. math:: h' = h - \sum_{i \in D} (z_i - \mathbb{E}[z_i])\, w_i .

    The part that the autoencoder does not explain stays, so nothing is lost where nothing is dropped. A student is
    trained without the dropped features, and the ablated teacher is not; a student is narrow in every layer, and the
    ablated teacher in one. Neither loss bounds the other. :doc:`/findings/distillation` and
    :doc:`/findings/random_starts` compare them on small teachers.

    The interval of `predict` is normal, from the standard errors over sequences. It covers the sampling of text alone:
    how well this text estimates the loss of the ablated teacher, with these features. It does not cover how far
    students' floors are from that loss; `LossForecaster` estimates that from runs.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import AblationPredictor
    >>> from geofloor.datasets import load_teacher
    >>> teacher = load_teacher()
    >>> tokens = np.random.default_rng(0).integers(2048, size=(4, 32))
    >>> predictor = AblationPredictor(teacher.path, layer=2, n_points=8).fit(tokens)
    >>> floors = predictor.predict([0, 16, 64, 128])
    >>> bool((np.diff(floors) < 0).all()), bool(floors[-1] < 1e-5)
    (True, True)
    """

    _shared_parameters = ("teacher", "autoencoder", "statistics")
    _saved: ClassVar = {
        "alpha_": number_or_nan(number(0, 1)),
        "capacity_": number(0, open_low=True),
        "n_features_": number(1, 2**53, whole=True),
        "curve_": frame(kept=array("int64"), kl=array(), standard_error=array(nan=True)),
        "_own_width": number(1, 2**53),
        "_covariance": array(ndim=2, nan=True),
    }

    def __init__(
        self,
        teacher: Any,
        layer: int,
        autoencoder: Any = None,
        statistics: Any = None,
        *,
        output: str = "residual",
        temperature: float = 2.0,
        capacity: CapacityMethod = "asymptotic",
        above_own_width: bool = False,
        n_points: int = 24,
        skip_first: int = 1,
        exclude_tokens: Any = None,
        batch_size: int = 8,
        pad_token_id: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        n_vocabulary: int | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.teacher = teacher
        self.layer = layer
        self.autoencoder = autoencoder
        self.statistics = statistics
        self.output = output
        self.temperature = temperature
        self.capacity = capacity
        self.above_own_width = above_own_width
        self.n_points = n_points
        self.skip_first = skip_first
        self.exclude_tokens = exclude_tokens
        self.batch_size = batch_size
        self.pad_token_id = pad_token_id
        self.model_kwargs = model_kwargs
        self.n_vocabulary = n_vocabulary
        self.device = device
        self.verbose = verbose

    def fit(self, tokens: Any, y: Any = None) -> AblationPredictor:
        """Measure the loss of the teacher without its less important features.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids to measure the loss on: text that the features were not learned from. About 50,000 tokens make
            the standard error small beside the differences between students.
        y : None
            Ignored.

        Returns
        -------
        self : AblationPredictor
            The fitted predictor.

        Raises
        ------
        TypeError
            If teacher, autoencoder or statistics are objects of another kind.
        ValueError
            If tokens, teacher, layer, autoencoder or statistics do not fit each other, or the loss is not finite.
        MemoryError
            If the device has too little memory; the message names what to lower.

        Warns
        -----
        OutlierRowsWarning
            If there is no autoencoder, and a few activations, such as attention sinks, carry much of the variance.
        UserWarning
            If the autoencoder explains less of the first activations than their mean does, or its `source_` names
            another layer, output or model.
        """
        # Plain integers, because small integers of NumPy overflow.
        n_points = check_number("n_points", self.n_points, 2, whole=True)
        self._batch_size = check_number("batch_size", self.batch_size, 1, whole=True)
        self._skip_first = check_number("skip_first", self.skip_first, 0, whole=True)
        self._temperature = check_number("temperature", self.temperature, 1e-6)
        check_flag("above_own_width", self.above_own_width)
        layer = check_number("layer", self.layer, whole=True)
        output = check_choice("output", self.output, OUTPUTS)
        self._check_features()
        device, module = load_language_model(self.teacher, self.model_kwargs, self.device)
        check_object("teacher", module, PreTrainedModel, "give a transformers model, or its name or path")
        model = LanguageModel(module, "the teacher", n_vocabulary=self.n_vocabulary)
        excluded = tokens_to_exclude(self.exclude_tokens, self.teacher, self.model_kwargs, model.n_tokens)
        rows = model.token_rows(tokens, "tokens", self.pad_token_id, excluded=excluded)
        if self._skip_first >= rows.length:
            raise too_short(self._skip_first, rows.length)
        extractor = ActivationExtractor(
            module,
            layer,
            output=output,
            skip_first=self._skip_first,
            exclude_tokens=excluded,
            max_length=None,
            batch_size=self._batch_size,
        ).fit()
        extractor._suspects = set()  # `token_rows` has warned of undeclared padding
        features = self._features(extractor, rows)
        self.n_features_ = features.n_features
        self.alpha_, self.capacity_ = features.alpha, features.capacity
        first = max(self.n_features_ / 1024, 1.0)
        points = np.unique(np.rint(np.geomspace(first, self.n_features_, n_points)).astype(np.int64))
        kept = np.concatenate([[0], points])
        block = extractor.model_.get_submodule(extractor.module_name_)
        with evaluating(module), memory_advice(f"lower batch_size={self._batch_size}"):
            positions = Positions(self._skip_first, excluded)
            sums, counts = self._losses(model, block, features, kept, rows, positions, device)
        self._draw_curve(kept, sums, counts, float(features.width))
        return self

    def _draw_curve(self, kept: np.ndarray, sums: np.ndarray, counts: np.ndarray, own_width: float) -> None:
        """Interpolate losses over the number of kept features, and keep the covariance of their errors."""
        if not np.isfinite(sums).all():
            raise ValueError(f"The loss of the ablated teacher is not finite; {why_not_finite(sums)}.")
        means, errors = np.transpose([mean_and_error(row, counts) for row in sums])
        self.curve_ = pd.DataFrame({"kept": kept, "kl": means, "standard_error": errors})
        self._own_width = own_width
        self._interpolate_curve()
        lowest_at = np.maximum.accumulate(np.where(means == np.minimum.accumulate(means), np.arange(len(kept)), 0))
        self._covariance = covariance_of_means(sums[lowest_at], counts)

    def _interpolate_curve(self) -> None:
        means, position = self.curve_["kl"].to_numpy(), np.log1p(self.curve_["kept"].to_numpy())
        # A student may leave a feature unused, so one feature more never makes a floor higher.
        lowest = np.minimum.accumulate(means)
        self._interpolate = PchipInterpolator(position, np.maximum(lowest, 0.0))
        self.critical_width_ = self.n_features_ / self.capacity_
        at_own = np.log1p(self.kept_features([self._own_width])[0])
        self.own_width_loss_ = float(self._interpolate(at_own))
        if self.above_own_width:
            self.critical_width_ = min(self.critical_width_, self._own_width)

    def _state_to_save(self) -> dict[str, Any]:
        state = super()._state_to_save()
        return {**state, "alpha_": None if np.isnan(self.alpha_) else self.alpha_}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        check_flag("above_own_width", self.above_own_width)
        kept, covariance = self.curve_["kept"].to_numpy(), self._covariance
        if kept[0] != 0 or kept[-1] != self.n_features_ or (np.diff(kept) <= 0).any():
            raise ValueError(f"its curve does not rise from 0 to {self.n_features_} kept features")
        one_sequence = bool(np.isnan(covariance).all())
        if covariance.shape != (len(kept), len(kept)) or bool(np.isnan(covariance).any()) != one_sequence:
            raise ValueError(f"its covariance is not that of {len(kept)} means")
        self._interpolate_curve()

    def _errors(self, kept: np.ndarray) -> np.ndarray:
        """Estimate standard errors of floors, as if the curve were linear between the points measured."""
        position = np.log1p(self.curve_["kept"])

        def weights(kept: np.ndarray) -> np.ndarray:
            return np.stack([np.interp(np.log1p(kept), position, unit) for unit in np.eye(len(position))], axis=1)

        combined = weights(kept)
        if self.above_own_width:  # the floor is a difference of losses on the same sequences, which vary together
            combined = combined - weights(self.kept_features([self._own_width]))
        return np.sqrt(np.maximum(((combined @ self._covariance) * combined).sum(axis=1), 0.0))

    def _check_features(self) -> None:
        check_not_left_out(self, "autoencoder", "statistics")
        if self.statistics is not None and self.autoencoder is None:
            raise ValueError("statistics are given and autoencoder=None; give both or none.")
        if self.autoencoder is not None:
            check_methods(self.autoencoder)
        if self.statistics is not None:
            check_object("statistics", self.statistics, BaseEstimator, "give a fitted FeatureStatistics")
            check_is_fitted(self.statistics)
            if not hasattr(self.statistics, "alive_"):
                raise TypeError(f"statistics is a {type(self.statistics).__name__}; give a fitted FeatureStatistics.")

    def _features(self, extractor: ActivationExtractor, rows: TokenRows) -> AblatedFeatures:
        activations = row_activations(extractor, rows, skip_first=self._skip_first, batch_size=self._batch_size)
        if self.autoencoder is None:
            return PrincipalComponents(activations, extractor._n_features_out)
        first = next(activations)
        dictionary = Dictionary(self.autoencoder, first)
        statistics = self.statistics
        if statistics is None:
            statistics = FeatureStatistics().fit(dictionary.encode(batch) for batch in chain([first], activations))
        features = Latents(dictionary, statistics, self.capacity)
        check_fit(dictionary, extractor, first)
        return features

    @torch.no_grad()
    def _losses(
        self,
        model: LanguageModel,
        block: torch.nn.Module,
        features: AblatedFeatures,
        kept: np.ndarray,
        rows: TokenRows,
        positions: Positions,
        device: torch.device,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the KL of each sequence, summed over positions (n_points, n_sequences), and count its positions."""
        sums, counts = np.zeros((len(kept), len(rows))), np.zeros(len(rows), dtype=np.int64)
        swap = BlockSwap()
        with (
            hooked(block, swap),
            progress_bar("ablation", total=len(rows), unit="sequence", verbose=self.verbose) as bar,
        ):
            for start in range(0, len(rows), self._batch_size):
                at = np.arange(start, min(start + self._batch_size, len(rows)))
                batch = rows.take(at)
                counted = positions.included(batch.ids)
                if batch.mask is not None:
                    counted &= batch.mask
                counts[at] = counted.sum(axis=1)
                ablated = positions.kept(batch.ids) & counted
                if not ablated.any():  # nothing is lost
                    bar.update(len(at))
                    continue
                ids, mask, places = (to_device(each, device) for each in (batch.ids, counted, ablated))
                swap.given = None
                targets = Targets(model.logits(ids), self._temperature, keep=True)
                whole = swap.seen
                measured = features.encode(whole[places].float().cpu().numpy())
                removed = np.zeros((measured.shape[0], features.width))
                for point in reversed(range(len(kept))):  # from all features down
                    if point + 1 < len(kept):
                        removed += features.part(measured, kept[point], kept[point + 1])
                    swap.given = whole.clone()
                    swap.given[places] -= to_device(removed.astype(np.float32), device).to(whole.dtype)
                    kls = row_kls(model.logits(ids), targets).view(ids.shape)
                    kls = torch.where(mask, kls, 0.0)
                    sums[point, at] = kls.sum(dim=1).double().cpu().numpy()
                bar.update(len(at))
        return sums, counts

    def predict(self, widths: ArrayLike, *, return_interval: bool = False, level: float = 0.9) -> Any:
        """Predict the floor at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.
        return_interval : bool, default=False
            Whether to return an interval for the sampling error as well. The Notes say what it covers.
        level : float, default=0.9
            Probability that the interval holds the loss of the ablated teacher over all text.

        Returns
        -------
        floors : ndarray of shape (n_widths,), float64
            Predicted floors, in nats per token.
        interval : ndarray of shape (n_widths, 2), float64
            Lower and upper end, if `return_interval`.

        Raises
        ------
        ValueError
            If a width is negative or not finite, `level` is not between 0 and 1, or an interval is asked for after a
            fit to one sequence.
        """
        kept = self.kept_features(widths)
        lossless = read_widths(widths) >= self.critical_width_
        return_interval = check_flag("return_interval", return_interval)
        level = check_number("level", level, 0, 1, open_low=True, open_high=True)
        losses = self._interpolate(np.log1p(kept))
        # Near zero the curve may be negative by rounding.
        floors = np.maximum(losses - self.own_width_loss_ if self.above_own_width else losses, 0.0)
        floors[lossless] = 0.0
        if not return_interval:
            return floors
        if np.isnan(self._covariance).any():
            raise ValueError(
                "return_interval=True needs a standard error over sequences, and tokens had 1 sequence in fit; fit to "
                "two or more."
            )
        spread = norm.ppf((1.0 + level) / 2.0) * self._errors(kept)
        spread[lossless] = 0.0  # nothing is lost there on any text
        return floors, np.maximum(floors[:, np.newaxis] + spread[:, np.newaxis] * [-1.0, 1.0], 0.0)
