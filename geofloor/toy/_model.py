"""The toy model of superposition as an estimator."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from geofloor._training.callbacks import CallbackSupportMixin, FitTasks, attributes_set
from geofloor._training.devices import one_thread, resolve_device
from geofloor._training.progress import progress_bar
from geofloor._training.seeds import draw_seed
from geofloor._validation import (
    check_array_of_numbers,
    check_number,
    check_numeric,
    check_object,
    shown,
    warn_caller,
)
from geofloor.toy._engine import (
    ArrayStream,
    DistributionStream,
    Evaluation,
    SampleStream,
    Stack,
    Trained,
    evaluate,
    initial_parameters,
    stacked,
    train,
)
from geofloor.toy._features import SparseFeatures

# Bounds of samples: biases are float32, and losses are squares on the scale of the data.
_SMALLEST, _LARGEST = 1e-30, 1e30
KEPT_NORM = 0.5  # the least ||W_i||^2 of a kept feature, between Elhage et al.'s 0 and 1
Importance = str | float | ArrayLike | Callable[[int], ArrayLike]


class ToyModel(CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Toy model of superposition: a ReLU autoencoder with fewer hidden dimensions than features.

    It encodes samples linearly and decodes them with the transposed weight and a ReLU (Elhage et al.,
    2022). Trained on sparse features, it keeps more features than it has dimensions. Its loss is the
    floor predicted by this library.

    Parameters
    ----------
    width : int
        Width d, at most the number of features.
    importance : {"zipf", "uniform"}, float, array-like of shape (n_features,) or callable, default="zipf"
        Weights I_i of the features in the loss: 1/i, 1, i to the power of minus the given number, the
        given weights, or the result of a function of the number of features.
    n_init : int, default=1
        Models trained from different starting points; the best is kept. Poor local minima are common:
        with few dimensions and very sparse features, floors of single models scatter by 10%.
    n_steps : int, default=1500
        Steps per round, over which the step size falls to zero.
    max_rounds : int, default=10
        Maximum number of rounds. Training ends earlier after a round without a fall of the loss.
    tol : float, default=5e-3
        Smallest relative fall of the best loss per round that counts as a fall.
    batch_size : int, default=128
        Non-empty samples per step; the contribution of empty samples is added exactly.
    learning_rate : float, default=1e-2
        Step size of Adam at the beginning of a round, on the scale of the weights.
    n_eval_samples : int, default=131072
        Number of fresh non-empty samples for measuring `floor_`.
    random_state : int, RandomState or None, default=None
        Seed of the starting points and of the samples.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    components_ : ndarray of shape (width, n_features_in_), float32
        Weight W; column i is the direction W_i of feature i.
    intercept_ : ndarray of shape (n_features_in_,), float32
        Bias b of the decoder.
    importances_ : ndarray of shape (n_features_in_,), float64
        Weights of the features in the loss.
    floor_ : float
        Importance-weighted squared error per sample: on fresh samples after fitting a distribution, else on
        the samples of `fit`.
    standard_error_ : float
        Standard error of `floor_`, from the spread over samples.
    floors_ : ndarray of shape (n_init,), float64
        `floor_` of every starting point.
    data_floor_ : float
        Loss with the sample itself as the target; differs from `floor_` if there is a teacher.
    feature_losses_ : ndarray of shape (n_features_in_,), float64
        Part of `floor_` due to each feature.
    squared_norms_ : ndarray of shape (n_features_in_,), float64
        ‖W_i‖²: about 1 for kept features, about 0 for dropped ones.
    fractional_capacities_ : ndarray of shape (n_features_in_,), float64
        C_i = ‖W_i‖⁴ / Σ_j (W_i·W_j)², the share of a dimension of feature i alone (Scherlis et al.,
        2022).
    n_kept_ : int
        Number of kept features, with ‖W_i‖² ≥ 1/2.
    dropped_share_ : float
        Share of the loss due to dropped features.
    interference_share_ : float
        Share of the loss due to kept features, because they share dimensions.
    n_steps_ : int
        Steps taken.
    converged_ : bool
        Whether the loss had stopped falling.
    history_ : list of dict
        ``step`` and ``loss`` of the best model, on selection samples.
    n_features_in_ : int
        Number of features n.

    See Also
    --------
    SparseFeatures : The distribution to train on.
    toy_sweep : Train thousands of toy models at once.
    geofloor.FloorPredictor : Predict the floor.

    Notes
    -----
    The hidden state is :math:`h = W x`, the output :math:`\hat x = \mathrm{ReLU}(W^\top h + b)`, and
    the loss :math:`\mathbb{E} \sum_i I_i (x_i - \hat x_i)^2`. A ReLU gives no negative values, and
    can't reconstruct negative entries of samples.

    Every round starts Adam anew and ends with a step size of zero, as in stochastic gradient descent
    with warm restarts [3]_. The model keeps the parameters after the round with the lowest loss.

    With a scikit-learn that has `sklearn.callback`, callbacks given to `set_callbacks` see one task per round, with
    ``round``, ``step`` and ``loss`` of the best model as ``metadata``. Training ends, without a warning, after a round
    at which `on_fit_task_end` of one returns True.

    References
    ----------
    .. [1] Elhage et al. (2022), "Toy Models of Superposition", Transformer Circuits Thread.
    .. [2] Scherlis et al. (2022), "Polysemanticity and Capacity in Neural Networks", arXiv:2210.01892.
    .. [3] Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR.

    Examples
    --------
    >>> from geofloor import ToyModel
    >>> from geofloor.toy import SparseFeatures
    >>> features = SparseFeatures(10, alpha=0.95)
    >>> model = ToyModel(4, n_init=5, random_state=0).fit(features)
    >>> model.n_kept_ > 4, bool(0.003 < model.floor_ < 0.004)
    (True, True)
    >>> X = features.sample(3, random_state=0)
    >>> model.transform(X).shape, model.predict(X).shape
    ((3, 4), (3, 10))
    """

    def __init__(
        self,
        width: int,
        *,
        importance: Importance = "zipf",
        n_init: int = 1,
        n_steps: int = 1500,
        max_rounds: int = 10,
        tol: float = 5e-3,
        batch_size: int = 128,
        learning_rate: float = 1e-2,
        n_eval_samples: int = 131_072,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.width = width
        self.importance = importance
        self.n_init = n_init
        self.n_steps = n_steps
        self.max_rounds = max_rounds
        self.tol = tol
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_eval_samples = n_eval_samples
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, teacher: ToyModel | None = None) -> ToyModel:
        """Train on samples or on a distribution, until the loss has stopped falling.

        Parameters
        ----------
        X : SparseFeatures or array-like of shape (n_samples, n_features)
            Distribution to draw every batch from, or the samples.
        y : None
            Ignored; here by convention.
        teacher : ToyModel, default=None
            Fitted model whose output is the target; by default the target is the sample itself.

        Returns
        -------
        self : ToyModel
            The fitted model.

        Raises
        ------
        ValueError
            If data or parameters are out of range, `width` exceeds the number of features, the
            teacher has other features, or the loss becomes non-finite.

        Warns
        -----
        ConvergenceWarning
            If the loss was still falling after `max_rounds`.
        """
        check_object("teacher", teacher, (ToyModel, type(None)), "give a fitted ToyModel, or None to learn the samples")
        settings = check_settings(
            n_init=self.n_init,
            n_steps=self.n_steps,
            max_rounds=self.max_rounds,
            batch_size=self.batch_size,
            n_eval_samples=self.n_eval_samples,
            tol=self.tol,
            learning_rate=self.learning_rate,
        )
        device = resolve_device(self.device)
        seed = draw_seed(self.random_state)
        stream = self._stream(X, seed)
        width, n_init = check_width("width", self.width, stream.n_features), settings.pop("n_init")
        n_eval_samples = settings.pop("n_eval_samples")
        self.importances_ = resolve_importances(self.importance, stream.n_features)
        rngs = [np.random.default_rng((seed, start)) for start in range(n_init)]
        starts = [initial_parameters(stream.n_features, width, rng) for rng in rngs]
        stack = self._stack(starts, stream, teacher, device)
        steps = np.unique(np.geomspace(1, settings["n_steps"], 32).astype(int)).tolist()
        factor = stream.scale**2 * self.importances_.max()

        def publish(model: ToyModel, trained: Trained) -> None:
            evaluations = evaluate(stack._replace(parameters=trained.parameters), [stream], n_eval_samples)
            model._publish(trained, evaluations[0], evaluations[1] or evaluations[0], stream.scale, factor)

        def end_step() -> None:
            tasks.begin_task()
            bar.update()

        def end_round(trained: Trained) -> bool:
            step = trained.history[-1][0]
            loss = float(trained.selection_loss.min() * factor)
            return tasks.end_task({"round": step // settings["n_steps"], "step": step, "loss": loss}, trained)

        def attributes_at(trained: Trained) -> dict[str, Any]:
            return attributes_set(self, lambda shell: publish(shell, trained))

        with (
            one_thread(),
            FitTasks(self, X, attributes_at=attributes_at) as tasks,
            progress_bar("toy model", total=settings["n_steps"] * settings["max_rounds"], verbose=self.verbose) as bar,
        ):
            tasks.begin(settings["max_rounds"], "round")
            trained = train(
                stack, [stream], **settings, history_steps=[0, *steps], on_step=end_step, on_round=end_round
            )
            publish(self, trained)
            tasks.end()
        if not (self.converged_ or trained.is_stopped):
            warn_caller(
                f"The loss was still falling by more than tol={float(self.tol):g} per round after {self.n_steps_} "
                "steps; raise max_rounds or n_steps.",
                ConvergenceWarning,
            )
        return self

    def _stack(
        self, starts: list[np.ndarray], stream: SampleStream, teacher: ToyModel | None, device: torch.device
    ) -> Stack:
        """Stack the starting points, (1 + width, n_features) each, with what they are trained on."""
        n_init, shape = len(starts), starts[0].shape
        # Relative weights in training, so that Adam's epsilon is small beside them.
        relative = self.importances_ / self.importances_.max()
        return Stack(
            parameters=stacked(starts, shape, device),
            importances=stacked([relative] * n_init, shape[1:], device),
            source=torch.zeros(n_init, dtype=torch.long, device=device),
            empty_probability=torch.full((n_init,), stream.empty_probability, device=device),
            teacher=None if teacher is None else self._teacher(teacher, stream, n_init, device),
        )

    def _publish(
        self, trained: Trained, evaluation: Evaluation, on_data: Evaluation, scale: float, factor: float
    ) -> None:
        """Set the fitted attributes to those of the best model; losses in training are multiplied by `factor`."""
        best = int(np.argmin(trained.selection_loss))
        weights = trained.parameters[best].cpu().numpy()
        self.components_ = weights[1:].copy()
        self.intercept_ = (weights[0] * scale).astype(np.float32)
        self.floors_ = evaluation.loss * factor
        self.floor_ = float(self.floors_[best])
        self.standard_error_ = float(evaluation.standard_error[best] * factor)
        self.data_floor_ = float(on_data.loss[best] * factor)
        self.feature_losses_ = self.importances_ * evaluation.feature_errors[best] * scale**2
        self.n_steps_, self.converged_ = int(trained.n_steps[best]), bool(trained.converged[best])
        self.history_ = [
            {"step": step, "loss": float(losses[best] * factor)}
            for step, losses in trained.history
            if np.isfinite(losses[best])
        ]
        self._n_features_out = len(self.components_)
        self._measure_geometry()

    def _stream(self, X: Any, seed: int) -> SampleStream:
        if isinstance(X, SparseFeatures):
            self.n_features_in_ = X.n_features
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return DistributionStream(X, (seed,))
        samples = self._read(X, reset=True)
        active = np.abs(samples[samples != 0.0])
        if active.size and active.max() < _SMALLEST:
            raise ValueError(f"X holds nothing above {active.max():.3g}, which is too small to square; scale it.")
        return ArrayStream(samples, (seed,))

    def _read(self, X: Any, *, reset: bool = False) -> np.ndarray:
        samples = validate_data(self, check_numeric(X, "X"), dtype=[np.float64, np.float32], reset=reset)
        _check_largest(samples)
        return samples

    def _teacher(self, teacher: ToyModel, stream: SampleStream, n_init: int, device: torch.device) -> torch.Tensor:
        check_is_fitted(teacher)
        if teacher.n_features_in_ != stream.n_features:
            raise ValueError(
                f"teacher has {teacher.n_features_in_} features, the data have {stream.n_features}; "
                "train both on the same features."
            )
        parameters = np.vstack([teacher.intercept_ / stream.scale, teacher.components_])
        return stacked([parameters] * n_init, parameters.shape, device)

    def _measure_geometry(self) -> None:
        directions = self.components_.astype(np.float64)
        kept = is_kept(directions)
        overlaps = directions.T @ directions
        self.squared_norms_ = np.diag(overlaps).copy()
        shared = (overlaps**2).sum(axis=1)
        self.fractional_capacities_ = np.divide(
            self.squared_norms_**2, shared, out=np.zeros_like(shared), where=shared > 0.0
        )
        self.n_kept_ = int(kept.sum())
        total = self.feature_losses_.sum()
        self.dropped_share_ = float(self.feature_losses_[~kept].sum() / total) if total > 0.0 else 0.0
        self.interference_share_ = float(self.feature_losses_[kept].sum() / total) if total > 0.0 else 0.0

    def transform(self, X: Any) -> np.ndarray:
        """Compute hidden states of samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        hidden : ndarray of shape (n_samples, width)
            W x of each sample.

        Raises
        ------
        ValueError
            If values are not finite or the number of features differs from the fit's.
        """
        check_is_fitted(self)
        X = self._read(X)
        return X @ self.components_.T.astype(X.dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Compute outputs from hidden states.

        Parameters
        ----------
        X : array-like of shape (n_samples, width)
            Hidden states.

        Returns
        -------
        output : ndarray of shape (n_samples, n_features)
            ReLU(Wᵀ h + b) of each.

        Raises
        ------
        ValueError
            If values are not finite or the number of dimensions is not the model's.
        """
        check_is_fitted(self)
        hidden = check_array(check_numeric(X, "X"), dtype=[np.float64, np.float32], input_name="X")
        _check_largest(hidden)
        if hidden.shape[1] != len(self.components_):
            raise ValueError(f"X has {hidden.shape[1]} dimensions, but the model has width={len(self.components_)}.")
        return np.maximum(hidden @ self.components_.astype(hidden.dtype) + self.intercept_.astype(hidden.dtype), 0.0)

    def predict(self, X: Any) -> np.ndarray:
        """Compute outputs for samples: the targets of a student of this model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        output : ndarray of shape (n_samples, n_features)
            ReLU(Wᵀ W x + b) of each sample.

        Raises
        ------
        ValueError
            If values are not finite or the number of features differs from the fit's.
        """
        return self.inverse_transform(self.transform(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the importance-weighted squared error per sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : None
            Ignored; here by convention.

        Returns
        -------
        score : float
            Minus the mean over samples of Σ_i I_i (x_i − x̂_i)².

        Raises
        ------
        ValueError
            If values are not finite or the number of features differs from the fit's.
        """
        check_is_fitted(self)
        samples = self._read(X)
        output = self.inverse_transform(samples @ self.components_.T.astype(samples.dtype))
        error = samples.astype(np.float64) - output
        return -float(np.mean(error**2 @ self.importances_))


def _check_largest(X: np.ndarray) -> None:
    largest = float(np.abs(X).max(initial=0.0))
    if largest > _LARGEST:
        raise ValueError(f"X holds {largest:.3g}, which is above {_LARGEST:g} and too large to square; scale it.")


def is_kept(directions: np.ndarray) -> np.ndarray:
    """Return whether features are kept (..., n), by the squared norms of the columns of W (..., d, n)."""
    return (np.asarray(directions, dtype=np.float64) ** 2).sum(axis=-2) >= KEPT_NORM


def resolve_importances(importance: Importance, n_features: int) -> np.ndarray:
    """Return the importance of each feature (n_features,) in float64, after checks."""
    ranks = np.arange(1, n_features + 1, dtype=np.float64)
    if isinstance(importance, str):
        if importance not in {"zipf", "uniform"}:
            raise ValueError(
                f"importance={shown(importance)} is not a law; use 'zipf', 'uniform', a number or an array."
            )
        return 1.0 / ranks if importance == "zipf" else np.ones(n_features)
    if isinstance(importance, numbers.Real):
        return ranks ** -check_number("importance", importance, 0)
    values = importance(n_features) if callable(importance) else importance
    values = check_array_of_numbers(values, "importance", low=0, high=_LARGEST)
    if values.shape != (n_features,):
        raise ValueError(f"importance has shape {values.shape} for {n_features} features; give one weight for each.")
    if not values.max() > 0.0:
        raise ValueError("importance is all zero, so that nothing can be lost; give at least one positive weight.")
    return values


def check_width(name: str, width: Any, n_features: int) -> int:
    """Return a width from 1 to the number of features.

    Raises
    ------
    ValueError
        If it is no such number.
    """
    number: int = check_number(name, width, 1, whole=True)
    if number > n_features:
        raise ValueError(
            f"{name}={number} exceeds the number of features, {n_features}; a model as wide loses nothing."
        )
    return number


def check_settings(*, tol: Any, learning_rate: Any, **counts: Any) -> dict[str, Any]:
    """Check settings of training, and return plain numbers by name.

    Raises
    ------
    ValueError
        If one is out of range.
    """
    return {
        **{name: check_number(name, value, 1, whole=True) for name, value in counts.items()},
        "tol": check_number("tol", tol, 0, 1, open_high=True),
        "learning_rate": check_number("learning_rate", learning_rate, 0, _LARGEST, open_low=True),
    }
