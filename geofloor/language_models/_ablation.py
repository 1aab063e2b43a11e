"""The loss floor in nats: what the teacher itself loses without the features that a student drops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedModel

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._training.devices import memory_advice, to_device
from geofloor._training.progress import progress_bar
from geofloor._validation import check_flag, check_number, check_object
from geofloor.features import FeatureStatistics
from geofloor.language_models._divergence import Targets, mean_and_error, row_kls
from geofloor.language_models._extractor import ActivationExtractor
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._token_rows import TokenRows
from geofloor.theory import capacity
from geofloor.theory._capacity import CapacityMethod
from geofloor.theory._widths import FeaturePredictorMixin


class AblationPredictor(
    ShortReprMixin, SharedParametersMixin, PortablePickleMixin, FeaturePredictorMixin, BaseEstimator
):
    r"""Predict the loss floor of a student in nats a token, from what the teacher loses without what a student drops.

    A student of width d keeps the :math:`F_S = \lfloor d\,g(\alpha) \rfloor` most important features, as in Eq. 2.
    Eq. 2 charges the others by their squared activation. Here they are taken out of the teacher's residual
    stream, the rest of the teacher runs on what is left, and the charge is the KL divergence of its output from that
    of the whole teacher: a loss in the units that distillation is measured in.

    Parameters
    ----------
    teacher : PreTrainedModel, str or path-like
        A causal language model of ``transformers``, or its name on the hub or its folder. It is not changed.
    layer : int
        Block, from 0, after which features are taken out; negative indices count from the last.
    autoencoder : SparseAutoencoder, default=None
        Fitted on activations after that block. With None the features are the principal components of the
        activations, one a dimension, which takes no training.
    statistics : FeatureStatistics, default=None
        Fitted on codes of `autoencoder`: the order of the features, their means and the sparsity. With None
        they are measured on the tokens given to `fit`; with few of those, rare features are missed and the sparsity
        comes out too low.
    temperature : float, default=2.0
        T, by which logits are divided, as in `DistilledStudent`.
    capacity : {"asymptotic", "minimax", "minimax_nonnegative"} or callable, default="asymptotic"
        Features per dimension g(α), as in `geofloor.theory.capacity`. Principal components have 1.
    above_own_width : bool, default=False
        Whether to count losses from that at the teacher's own width: a student as wide as the teacher can be the
        teacher, and loses nothing.
    n_points : int, default=24
        Numbers of kept features that the loss is measured at, beside 0; predictions lie on a monotone curve through
        them.
    skip_first : int, default=1
        Leading positions of each sequence that are left whole, as they are left out of the activations.
    batch_size : int, default=8
        Sequences a forward pass.
    teacher_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name.
    device : str, default="auto"
        As in `DistilledStudent`.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    alpha_ : float
        Sparsity of the features; NaN for principal components.
    capacity_ : float
        Features per dimension.
    n_features_ : int
        Number of features F.
    critical_width_ : float
        Width from which on the floor is 0: nothing is taken out there, F / g, or it is the teacher's own, if that is
        smaller and with `above_own_width`.
    own_width_loss_ : float
        What the teacher loses without what a student of its own width drops, in nats a token.
    curve_ : DataFrame
        What was measured: ``kept`` features, ``kl`` in nats a token, and its ``standard_error`` over
        sequences.

    See Also
    --------
    FloorPredictor : Charges features by their squared activation, and needs no teacher.
    AffineCalibrator : What is left to calibrate: students can be better or worse than the ablated teacher.

    Notes
    -----
    A feature is taken out by setting its activation to its mean (mean ablation), since a bias is free to a
    student: with h the residual stream, z the codes, w the decoder's directions and dropped features D,

    .. math:: h' = h - \sum_{i \in D} (z_i - \mathbb{E}[z_i])\, w_i .

    What the autoencoder does not explain stays, so that nothing is lost where nothing is dropped. A student is
    trained to do without, and the ablated teacher is not; but a student is narrow in every layer, and here
    one is. Neither bounds the other. :doc:`/findings/distillation` and :doc:`/findings/random_starts` say how near they
    came on small teachers.

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

    def __init__(
        self,
        teacher: Any,
        layer: int,
        autoencoder: Any = None,
        statistics: Any = None,
        *,
        temperature: float = 2.0,
        capacity: CapacityMethod = "asymptotic",
        above_own_width: bool = False,
        n_points: int = 24,
        skip_first: int = 1,
        batch_size: int = 8,
        teacher_kwargs: dict[str, Any] | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.teacher = teacher
        self.layer = layer
        self.autoencoder = autoencoder
        self.statistics = statistics
        self.temperature = temperature
        self.capacity = capacity
        self.above_own_width = above_own_width
        self.n_points = n_points
        self.skip_first = skip_first
        self.batch_size = batch_size
        self.teacher_kwargs = teacher_kwargs
        self.device = device
        self.verbose = verbose

    def fit(self, tokens: Any, y: Any = None) -> AblationPredictor:
        """Measure what the teacher loses without its less important features.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids that the loss is measured on: text that the features were not learnt from, in blocks without
            padding. Some 50,000 tokens make the standard error small beside what students differ by.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : AblationPredictor
            The fitted predictor.

        Raises
        ------
        TypeError
            If teacher, autoencoder or statistics are another kind of object.
        ValueError
            If tokens, teacher, layer, autoencoder or statistics don't fit each other, or the loss is not finite.
        MemoryError
            If the device has too little memory; the message names what to lower.
        """
        # Plain integers: small ones of NumPy would wrap.
        n_points = check_number("n_points", self.n_points, 2, whole=True)
        self._batch_size = check_number("batch_size", self.batch_size, 1, whole=True)
        self._skip_first = check_number("skip_first", self.skip_first, 0, whole=True)
        self._temperature = check_number("temperature", self.temperature, 1e-6)
        check_flag("above_own_width", self.above_own_width)
        self._check_features()
        device, module = load_language_model(self.teacher, self.teacher_kwargs, self.device)
        check_object("teacher", module, PreTrainedModel, "give a transformers model, or its name or path")
        model = LanguageModel(module, "the teacher")
        rows = model.token_rows(tokens, "tokens", None, remedy="cut text into blocks without padding: see token_blocks")
        if self._skip_first >= rows.length:
            raise ValueError(
                f"skip_first={self._skip_first} leaves nothing of sequences of {rows.length} tokens; lower it, or "
                "give longer ones."
            )
        extractor = ActivationExtractor(
            module, self.layer, skip_first=self._skip_first, max_length=None, batch_size=self._batch_size
        ).fit()
        extractor._suspects = set()  # `rows` have been looked at
        features = self._features(extractor, rows)
        if features.width != extractor._n_features_out:
            raise ValueError(
                f"autoencoder was fitted on activations of width {features.width}, and the teacher's are "
                f"{extractor._n_features_out} wide; use one of this teacher, fitted after block {extractor.layer_}."
            )
        self.n_features_ = features.n_features
        self.alpha_, self.capacity_ = features.alpha, features.capacity
        first = max(self.n_features_ / 1024, 1.0)
        points = np.unique(np.rint(np.geomspace(first, self.n_features_, n_points)).astype(np.int64))
        kept = np.concatenate([[0], points])
        block = extractor.model_.get_submodule(extractor.block_name_)
        with evaluating(module), memory_advice(f"lower batch_size={self._batch_size}"):
            sums, counts = self._losses(model, block, features, kept, rows, device)
        means, errors = np.transpose([mean_and_error(row, counts) for row in sums])
        if not np.isfinite(means).all():
            raise ValueError(
                "The loss of the ablated teacher is not finite; check the weights of teacher and autoencoder."
            )
        self.curve_ = pd.DataFrame({"kept": kept, "kl": means, "standard_error": errors})
        # A student may leave a feature unused, so one feature more never makes a floor higher.
        lowest = np.maximum(np.minimum.accumulate(means), 0.0)
        self._interpolate = PchipInterpolator(np.log1p(kept), lowest)
        own = float(features.width)
        self.critical_width_ = self.n_features_ / self.capacity_
        self.own_width_loss_ = float(self._interpolate(np.log1p(self.kept_features([own])[0])))
        if self.above_own_width:
            self.critical_width_ = min(self.critical_width_, own)
        return self

    def _check_features(self) -> None:
        if self.statistics is not None and self.autoencoder is None:
            raise ValueError("statistics are those of an autoencoder's codes, and autoencoder=None; give both or none.")
        for name, kind, attribute in (
            ("autoencoder", "SparseAutoencoder", "decoder_"),
            ("statistics", "FeatureStatistics", "alive_"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            check_object(name, value, BaseEstimator, f"give a fitted {kind}")
            check_is_fitted(value)
            if not hasattr(value, attribute):
                raise TypeError(f"{name} is a {type(value).__name__}; give a fitted {kind}.")

    def _features(self, extractor: ActivationExtractor, rows: TokenRows) -> _Features:
        def activations() -> Any:
            for start in range(0, len(rows), 64 * self._batch_size):
                at = np.arange(start, min(start + 64 * self._batch_size, len(rows)))
                yield from extractor.iter_batches(rows.take(at).ids)

        if self.autoencoder is None:
            return _Components(activations(), extractor._n_features_out)
        statistics = self.statistics
        if statistics is None:
            statistics = FeatureStatistics().fit(self.autoencoder.transform(batch) for batch in activations())
        return _Latents(self.autoencoder, statistics, self.capacity)

    @torch.no_grad()
    def _losses(
        self,
        model: LanguageModel,
        block: torch.nn.Module,
        features: _Features,
        kept: np.ndarray,
        rows: TokenRows,
        device: torch.device,
    ) -> tuple[np.ndarray, np.ndarray]:
        """KL of each sequence, summed over positions (n_points, n_sequences), and the positions."""
        sums = np.zeros((len(kept), len(rows)))
        swap = _Swap()
        with (
            hooked(block, swap),
            progress_bar("ablation", total=len(rows), unit="sequence", verbose=self.verbose) as bar,
        ):
            for start in range(0, len(rows), self._batch_size):
                at = np.arange(start, min(start + self._batch_size, len(rows)))
                ids = to_device(rows.take(at).ids, device)
                swap.given = None
                targets = Targets(model.rows(ids), self._temperature, keep=True)
                whole = swap.seen
                states = whole[:, self._skip_first :]
                measured = features.encode(states.reshape(-1, states.shape[-1]).float().cpu().numpy())
                removed = np.zeros((measured.shape[0], features.width))
                for point in reversed(range(len(kept))):  # from all features down
                    if point + 1 < len(kept):
                        removed += features.part(measured, kept[point], kept[point + 1])
                    change = to_device(removed.astype(np.float32), device).reshape(states.shape)
                    swap.given = whole.clone()
                    swap.given[:, self._skip_first :] -= change.to(whole.dtype)
                    kls = row_kls(model.rows(ids), targets).view(ids.shape)
                    sums[point, at] = kls.sum(dim=1).double().cpu().numpy()
                bar.update(len(at))
        return sums, np.full(len(rows), rows.length)

    def predict(self, widths: ArrayLike) -> np.ndarray:
        """Floor at each width.

        Parameters
        ----------
        widths : array-like of shape (n_widths,) or (n_widths, 1)
            Widths of students, in dimensions.

        Returns
        -------
        floors : ndarray of shape (n_widths,), float64
            Predicted floors, in nats a token.

        Raises
        ------
        ValueError
            If a width is negative or not finite.
        """
        kept = self.kept_features(widths)
        losses = self._interpolate(np.log1p(kept))
        # Where it meets zero the curve may be below it by rounding.
        return np.maximum(losses - self.own_width_loss_ if self.above_own_width else losses, 0.0)


class _Swap:
    """A hook on a block that tells what it gives, and gives something else in its place when there is some."""

    def __init__(self) -> None:
        self.seen = torch.empty(0)
        self.given: torch.Tensor | None = None

    def __call__(self, block: torch.nn.Module, arguments: Any, output: Any) -> Any:
        if self.given is None:
            self.seen = output if isinstance(output, torch.Tensor) else output[0]
            return None
        return self.given if isinstance(output, torch.Tensor) else (self.given, *output[1:])


class _Features(Protocol):
    """Directions in the residual stream, most important first."""

    n_features: int
    width: int
    alpha: float
    capacity: float

    def encode(self, states: np.ndarray) -> Any:
        """Activations of the features, about their means, in the form that `part` takes."""

    def part(self, activations: Any, start: int, stop: int) -> np.ndarray:
        """What the features from rank `start` to `stop` add to states, (n_tokens, width)."""


class _Latents:
    """Features of a sparse autoencoder, by their E[z²]."""

    def __init__(self, autoencoder: Any, statistics: Any, method: CapacityMethod) -> None:
        table = np.asarray(statistics.table_)
        if statistics.alive_[-1] >= len(autoencoder.decoder_):
            raise ValueError(
                f"statistics know latent {statistics.alive_[-1]}, and autoencoder has {len(autoencoder.decoder_)}; "
                "fit them on its codes."
            )
        norms = np.linalg.norm(np.asarray(autoencoder.decoder_, dtype=np.float64), axis=1)
        if not np.allclose(norms, 1.0, atol=1e-3):
            raise ValueError(
                f"autoencoder has decoder_ directions of norm {norms.min():.3g} to {norms.max():.3g}: the "
                "importance of a latent would depend on how its encoder and decoder share a factor. Divide each row of "
                "decoder_ by its norm, and multiply the latent's encoder weight and bias by it."
            )
        order = np.argsort(-table[:, 0], kind="stable")
        self._autoencoder = autoencoder
        self._latents, self._means = statistics.alive_[order], table[order, 2]
        self._directions = autoencoder.decoder_[self._latents]
        self.n_features, self.width = self._directions.shape
        self.alpha = float(statistics.alpha_)
        self.capacity = float(capacity(self.alpha, method))

    def encode(self, states: np.ndarray) -> Any:
        return self._autoencoder.transform(states)[:, self._latents].tocsc()

    def part(self, activations: Any, start: int, stop: int) -> np.ndarray:
        directions = self._directions[start:stop]
        return activations[:, start:stop] @ directions - self._means[start:stop] @ directions


class _Components:
    """Principal components of the activations: as many as dimensions, each taking one."""

    def __init__(self, activations: Iterator[np.ndarray], width: int) -> None:
        n_tokens, shift = 0, np.zeros(width)
        total, products = np.zeros(width), np.zeros((width, width))
        for batch in activations:
            if not n_tokens:
                shift = batch.mean(axis=0, dtype=np.float64)  # keeps the sums of squares small
            centred = batch - shift
            total += centred.sum(axis=0)
            products += centred.T @ centred
            n_tokens += len(batch)
        mean = total / n_tokens
        _, vectors = np.linalg.eigh(products / n_tokens - np.outer(mean, mean))
        self._mean, self._vectors = shift + mean, vectors[:, ::-1]
        self.n_features = self.width = width
        self.alpha, self.capacity = float("nan"), 1.0

    def encode(self, states: np.ndarray) -> np.ndarray:
        return (states - self._mean) @ self._vectors

    def part(self, activations: np.ndarray, start: int, stop: int) -> np.ndarray:
        return activations[:, start:stop] @ self._vectors[:, start:stop].T
