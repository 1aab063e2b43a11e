"""The dictionary of a teacher's features: a sparse autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from geofloor._sparse_step import (
    Parameters,
    clip_gradients,
    decode,
    encode,
    initialise,
    loss_and_gradients,
    normalise_decoder,
    project_decoder_gradient,
    reset_latents,
)
from geofloor._streams import is_stream
from geofloor._training.checkpoints import (
    check_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
    read_tensors,
    write_tensors,
)
from geofloor._training.devices import keep_freed_memory, resolve_device, to_device
from geofloor._training.progress import progress_bar
from geofloor._training.rows import ArrayRows, StreamRows
from geofloor._training.schema import Shape, check_tensors, fields, mapping, number, refusing, table
from geofloor._training.seeds import draw_seed, step_generator, torch_generator
from geofloor._training.settings import (
    NOT_SAVED,
    check_betas,
    check_files,
    check_range,
    plain_parameters,
    read_checkpoint,
    saved_parameters,
)

_FILE = "geofloor sparse autoencoder"
_CHECKPOINT = "geofloor sparse autoencoder checkpoint"
# What files hold; sizes of a name are the same.
_TENSORS: dict[str, tuple[torch.dtype, Shape]] = {
    "encoder": (torch.float32, ("n_latents", "n_inputs")),
    "encoder_bias": (torch.float32, ("n_latents",)),
    "decoder": (torch.float32, ("n_latents", "n_inputs")),
    "decoder_bias": (torch.float32, ("n_inputs",)),
}
_STEP = number(1, whole=True)
_HISTORY = table(
    step=_STEP,
    n_tokens=_STEP,
    loss=number(0),
    reconstruction=number(0),
    l1=number(0),
    l0=number(0),
    dead=number(0, 1),
    n_resampled=number(0, whole=True),
)
_FITTED = {"scale_": number(0, open_low=True), "history_": _HISTORY, "n_steps_": _STEP, "n_tokens_seen_": _STEP}
_STATE = {"scale": _FITTED["scale_"], "step": _STEP, "n_tokens": _STEP, "history": _HISTORY}
_PARAMETERS = {
    "encoder_weight": ("n_latents", "n_inputs"),
    "encoder_bias": ("n_latents",),
    "decoder_weight": ("n_latents", "n_inputs"),
    "decoder_bias": ("n_inputs",),
}
_STATE_TENSORS: dict[str, tuple[torch.dtype, Shape]] = {
    **{f"parameters.{name}": (torch.float32, shape) for name, shape in _PARAMETERS.items()},
    "idle_tokens": (torch.int64, ("n_latents",)),
    **{
        f"optimizer.{index}.{name}": (torch.float32, () if name == "step" else shape)
        for index, shape in enumerate(_PARAMETERS.values())
        for name in ("step", "exp_avg", "exp_avg_sq")
    },
}
_CODES_AT_A_TIME = 2**24
_FLUSH_EVERY = 20  # steps between looks at the loss, each of which waits for the device
# What does not change the result of a fit, and so may differ when it is resumed.
_INCIDENTAL = frozenset({"device", "verbose", "checkpoint_path", "checkpoint_every", "random_state"})


class SparseAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Learn an overcomplete dictionary in which activations have sparse, non-negative codes.

    The autoencoder of the paper: ReLU encoder, pre-encoder bias shared with the decoder, decoder
    directions of unit norm, squared error plus an L1 penalty, Adam.

    Parameters
    ----------
    n_latents : int or None, default=None
        Number of latents; None means `expansion` times the number of inputs.
    expansion : int, default=32
        Latents per input, where `n_latents` is None.
    l1_coefficient : float, default=8e-4
        λ, on the codes summed over latents and averaged over the batch. Its effect depends on the
        scale of the data: see `normalization`.
    normalization : {None, "mean_norm", "mean_square"}, default=None
        Scale on which the autoencoder is trained: the data's own, E‖x‖ = √n_inputs, or E‖x‖² = 1.
        The scale is folded into the biases and codes afterwards, so that codes and reconstructions
        are always those of the data as given.
    learning_rate : float, default=3e-4
        Adam's step size.
    betas : tuple of two floats, default=(0.9, 0.999)
        Adam's decay rates.
    clip_norm : float or None, default=1.0
        Largest joint norm of the gradients; None leaves them.
    warmup_steps : int, default=0
        Steps over which the learning rate rises linearly.
    decay_fraction : float, default=0.0
        Final share of the steps over which the learning rate falls linearly to zero. It needs data of
        known length.
    batch_size : int, default=32768
        Tokens a step.
    n_epochs : int, default=1
        Passes over the data.
    resample_every : int or None, default=None
        Tokens after which latents that have not fired since the last such time are pointed at inputs
        that are reconstructed badly (Bricken et al., 2023). The last time leaves at least as many
        tokens to train them. None, as in the paper, lets latents die.
    dead_after : int, default=100_000
        Tokens without firing after which a latent counts as dead in `history_`.
    checkpoint_path : str, path or None, default=None
        File that `fit` keeps its state in. If it exists, from the same settings and data, `fit` goes on
        from there to the result of a run never stopped.
    checkpoint_every : int, default=100
        Steps between checkpoints.
    random_state : int, RandomState or None, default=None
        Seed of the initial directions, of the order of the rows and of resampling.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    encoder_ : ndarray of shape (n_latents_, n_features_in_), float32
        Encoder weight.
    encoder_bias_ : ndarray of shape (n_latents_,), float32
        Encoder bias.
    decoder_ : ndarray of shape (n_latents_, n_features_in_), float32
        Directions of the latents, of unit norm.
    decoder_bias_ : ndarray of shape (n_features_in_,), float32
        Bias subtracted before encoding and added after decoding.
    n_latents_ : int
        Number of latents.
    scale_ : float
        Factor on the data during training.
    history_ : list of dict
        For each step: ``step``, ``n_tokens`` seen, ``loss``, ``reconstruction`` (squared error a
        token), ``l1`` (sum of codes a token), ``l0`` (codes above zero a token), ``dead`` (share of
        latents that have not fired for `dead_after` tokens) and ``n_resampled``; losses are on the
        scale of training.
    n_steps_ : int
        Steps taken.
    n_tokens_seen_ : int
        Tokens trained on.
    device_ : str
        Device trained on.
    n_features_in_ : int
        Number of inputs d.

    See Also
    --------
    FeatureStatistics : Measures the features on the codes.
    ActivationExtractor : Gives a language model's activations.

    Notes
    -----
    For inputs x of n_inputs dimensions the codes are
    :math:`z = \mathrm{ReLU}(W_{enc}(x - b_{dec}) + b_{enc})`, the reconstruction is
    :math:`\hat x = W_{dec}^\top z + b_{dec}`, and the loss is

    .. math:: \lVert x - \hat x \rVert^2 + \lambda \sum_j |z_j|,

    summed over inputs and latents and averaged over the batch ([1]_, Section 5.1 and Appendix D).
    The decoder's gradient is projected off its directions, all gradients are clipped, Adam steps, and
    the directions are brought back to unit norm. The decoder bias starts at the mean of the data.

    On a CPU the same seed, data and number of threads give the same bits.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.
    .. [2] Bricken et al. (2023), "Towards Monosemanticity", Transformer Circuits Thread.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import SparseAutoencoder
    >>> rng = np.random.default_rng(0)
    >>> features = rng.random((5000, 12)) * (rng.random((5000, 12)) < 0.1)
    >>> activations = features @ rng.normal(size=(12, 8))
    >>> sae = SparseAutoencoder(
    ...     24, batch_size=250, n_epochs=40, learning_rate=3e-3, l1_coefficient=0.01, random_state=0
    ... ).fit(activations)
    >>> codes = sae.transform(activations)
    >>> codes.format, codes.shape
    ('csr', (5000, 24))
    >>> sae.score(activations) > 0.9
    True
    """

    def __init__(
        self,
        n_latents: int | None = None,
        *,
        expansion: int = 32,
        l1_coefficient: float = 8e-4,
        normalization: str | None = None,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_norm: float | None = 1.0,
        warmup_steps: int = 0,
        decay_fraction: float = 0.0,
        batch_size: int = 32_768,
        n_epochs: int = 1,
        resample_every: int | None = None,
        dead_after: int = 100_000,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_latents = n_latents
        self.expansion = expansion
        self.l1_coefficient = l1_coefficient
        self.normalization = normalization
        self.learning_rate = learning_rate
        self.betas = betas
        self.clip_norm = clip_norm
        self.warmup_steps = warmup_steps
        self.decay_fraction = decay_fraction
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.resample_every = resample_every
        self.dead_after = dead_after
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train on activations.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs), or iterable of such batches
            Activations. An array, memory map or `ActivationStore` is read in a random order that
            changes each epoch; memory maps and stores are read batch by batch. The batches of an
            iterable, such as a generator or a list of arrays, are taken in the order given and cut to
            `batch_size`, whatever their own sizes; for several epochs it must be iterable again.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : SparseAutoencoder
            The fitted autoencoder.

        Raises
        ------
        ValueError
            If data or parameters are out of range, if `checkpoint_path` belongs to other settings or
            data or is damaged, or if the loss becomes non-finite.
        """
        self._check_parameters()
        check_files(self)
        rows = self._open(X)
        n_steps = rows.n_steps(self.batch_size, self.n_epochs)
        if self.decay_fraction and n_steps is None:
            raise ValueError("decay_fraction needs data of known length; give an array, or leave it at 0.")
        state = self._resume(rows) or self._start(rows.sample, draw_seed(self.random_state))
        keep_freed_memory(state.device)
        batches = rows.batches(self.batch_size, self.n_epochs, state.step, state.seed)
        with progress_bar("sparse autoencoder", total=n_steps, initial=state.step, verbose=self.verbose) as bar:
            for batch in batches:
                self._step(state, batch, n_steps)
                bar.update()
                if state.step % self.checkpoint_every == 0 and self.checkpoint_path is not None:
                    self._checkpoint(state, rows)
                if state.step % _FLUSH_EVERY == 0:
                    row = self._flush(state)
                    bar.set_postfix(loss=f"{row['loss']:.4g}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.0%}")
        self._publish(state)  # first, so that it is there even if no more can be written
        if self.checkpoint_path is not None:
            self._checkpoint(state, rows)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train one pass over more activations, in the order given.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations; the first call sets the mean and the scale that training starts from.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : SparseAutoencoder
            The autoencoder, trained on.

        Raises
        ------
        ValueError
            If data or parameters are out of range, or the loss becomes non-finite.
        """
        self._check_parameters()
        first = not hasattr(self, "encoder_")
        X = validate_data(self, X, dtype=np.float32, order="C", reset=first)
        state = self._start(X, draw_seed(self.random_state)) if first else self._continue()
        keep_freed_memory(state.device)
        for start in range(0, len(X), self.batch_size):
            self._step(state, X[start : start + self.batch_size], None)
        return self._publish(state)

    def transform(self, X: Any) -> Any:
        """Codes of activations.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations.

        Returns
        -------
        codes : CSR matrix or array of shape (n_tokens, n_latents), float32
            Codes, all above zero where stored; a sparse array if scikit-learn's setting
            ``sparse_interface`` is ``"sparray"``.

        Raises
        ------
        ValueError
            If values are not finite or the number of inputs differs from the fit's.
        """
        pieces = [_to_csr(codes) for _, codes in self._encoded(X)]
        stacked = sp.vstack(pieces, format="csr") if len(pieces) > 1 else pieces[0]
        array_wanted = get_config().get("sparse_interface", "spmatrix") == "sparray"
        return sp.csr_array(stacked) if array_wanted else sp.csr_matrix(stacked)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Reconstructions from codes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_tokens, n_latents)
            Codes.

        Returns
        -------
        activations : ndarray of shape (n_tokens, n_inputs), float32
            Reconstructed activations.

        Raises
        ------
        ValueError
            If values are not finite or the number of latents is not the dictionary's.
        """
        check_is_fitted(self)
        codes = check_array(X, accept_sparse="csr", dtype=np.float32)
        if codes.shape[1] != self.n_latents_:
            raise ValueError(f"X has {codes.shape[1]} latents, but the dictionary has n_latents_={self.n_latents_}.")
        return codes @ self.decoder_ + self.decoder_bias_

    def score(self, X: Any, y: Any = None) -> float:
        """Explained variance of the reconstruction, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖².

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations, preferably held out.
        y : None
            Ignored; here by convention.

        Returns
        -------
        explained_variance : float
            At most 1; with one mean over all tokens, summed in float64. Where all rows are equal it is
            1 if they are reconstructed and 0 if they are not.

        Raises
        ------
        ValueError
            If values are not finite or the number of inputs differs from the fit's.
        """
        parameters = None
        error = squares = 0.0
        n_rows, total = 0, np.zeros(1)
        for inputs, codes in self._encoded(X):
            parameters = parameters or self._parameters(inputs.device)
            residual = inputs - decode(parameters, codes)
            error += float(residual.square().sum(dtype=torch.float64))
            # About the decoder bias, which is near the mean, so that little cancels.
            centred = (inputs - parameters.decoder_bias).double()
            squares += float(centred.square().sum())
            total = total + centred.sum(dim=0).cpu().numpy()
            n_rows += len(inputs)
        variance = squares - float(total @ total) / n_rows
        if variance <= 1e-12 * squares:
            return 1.0 if error <= 1e-12 * squares else 0.0
        return 1.0 - error / variance

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted autoencoder as one safetensors file, its settings as JSON in the header.

        Parameters
        ----------
        path : str or path
            File to write, atomically. It holds what inference needs, and the history, but not the
            optimiser's state, with which `partial_fit` starts anew: to continue a `fit` use
            `checkpoint_path`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        check_is_fitted(self)
        tensors = {
            "encoder": torch.from_numpy(self.encoder_),
            "encoder_bias": torch.from_numpy(self.encoder_bias_),
            "decoder": torch.from_numpy(self.decoder_),
            "decoder_bias": torch.from_numpy(self.decoder_bias_),
        }
        metadata = {
            "parameters": plain_parameters(self, without=NOT_SAVED),
            "fitted": {name: getattr(self, name) for name in _FITTED},
        }
        write_tensors(path, tensors, kind=_FILE, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> SparseAutoencoder:
        """Read an autoencoder that `save` wrote. No code in the file is run.

        Parameters
        ----------
        path : str or path
            The file.
        device : str, default="auto"
            Device to encode on.

        Returns
        -------
        sae : SparseAutoencoder
            The fitted autoencoder.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, altered or not one of these, or its content is no autoencoder.
        """
        tensors, metadata = read_tensors(path, kind=_FILE)
        with refusing(path):
            check_tensors(tensors, _TENSORS)
            _check_directions(tensors["decoder"])
            content = fields(parameters=mapping, fitted=fields(**_FITTED))("metadata", metadata)
            sae = cls(**saved_parameters(content["parameters"], cls), device=device)
            sae._check_parameters()
            _check_history(content["fitted"]["history_"], content["fitted"]["n_steps_"])
        for name, tensor in tensors.items():
            setattr(sae, f"{name}_", tensor.numpy())
        for name, value in content["fitted"].items():
            setattr(sae, name, value)
        sae.n_latents_, sae.n_features_in_ = sae.encoder_.shape
        sae._n_features_out = sae.n_latents_
        sae.device_ = str(resolve_device(device))
        return sae

    # Training

    def _check_parameters(self) -> None:
        for name in ("expansion", "batch_size", "n_epochs", "checkpoint_every", "dead_after"):
            check_range(name, getattr(self, name), 1, whole=True)
        for name in ("n_latents", "resample_every"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, whole=True)
        check_range("warmup_steps", self.warmup_steps, 0, whole=True)
        check_range("l1_coefficient", self.l1_coefficient, 0)
        check_range("decay_fraction", self.decay_fraction, 0, high=1)
        check_range("learning_rate", self.learning_rate, 0)
        if self.clip_norm is not None:
            check_range("clip_norm", self.clip_norm, 0)
        check_betas("betas", self.betas)
        if self.normalization not in (None, "mean_norm", "mean_square"):
            raise ValueError(
                f"normalization={self.normalization!r} is unknown; use None, 'mean_norm' or 'mean_square'."
            )

    def _open(self, X: Any) -> ArrayRows | StreamRows:
        """Wrap the data, having checked what can be checked without reading all of a large one."""
        if is_stream(X):
            stream = StreamRows(X)
            validate_data(self, stream.sample, dtype=np.float32)
            return stream
        if isinstance(X, np.memmap) or hasattr(X, "iter_batches"):
            validate_data(self, np.asarray(X[:1]), dtype=np.float32)
            return ArrayRows(X)
        return ArrayRows(validate_data(self, X, dtype=np.float32, order="C"))

    def _start(self, sample: np.ndarray, seed: int) -> _State:
        """State before the first step, from a sample of the rows."""
        mean = sample.mean(axis=0, dtype=np.float64)
        square = np.square(sample, dtype=np.float64).sum(axis=1)
        if self.normalization is None:
            scale = 1.0
        elif self.normalization == "mean_norm":
            scale = np.sqrt(sample.shape[1]) / max(np.sqrt(square).mean(), np.finfo(float).tiny)
        else:
            scale = 1.0 / np.sqrt(max(square.mean(), np.finfo(float).tiny))
        n_latents = self.expansion * sample.shape[1] if self.n_latents is None else self.n_latents
        bias = torch.from_numpy((scale * mean).astype(np.float32))
        device = resolve_device(self.device)
        parameters = initialise(n_latents, bias, torch_generator(seed))
        parameters = Parameters(*(parameter.to(device) for parameter in parameters))
        idle_tokens = torch.zeros(n_latents, dtype=torch.int64, device=device)
        return _State(parameters, self._optimizer(parameters), idle_tokens, scale=float(scale), seed=seed)

    def _continue(self) -> _State:
        """State to train on from: what training left or, after `load`, the weights with a new optimiser."""
        if hasattr(self, "_state"):
            return self._state if isinstance(self._state, _State) else self._unpack(*self._state)
        parameters = self._parameters(resolve_device(self.device))
        parameters.encoder_bias.mul_(self.scale_)
        parameters.decoder_bias.mul_(self.scale_)
        return _State(
            parameters,
            self._optimizer(parameters),
            torch.zeros(self.n_latents_, dtype=torch.int64, device=parameters.encoder_bias.device),
            scale=self.scale_,
            seed=draw_seed(self.random_state),
            step=self.n_steps_,
            n_tokens=self.n_tokens_seen_,
            history=list(self.history_),
        )

    def _optimizer(self, parameters: Parameters) -> torch.optim.Adam:
        beta1, beta2 = self.betas
        return torch.optim.Adam(list(parameters), lr=self.learning_rate, betas=(beta1, beta2), fused=True)

    def _step(self, state: _State, batch: np.ndarray, n_steps: int | None) -> None:
        """One step of Adam, in place."""
        parameters = state.parameters
        inputs = to_device(batch, state.device)
        if state.scale != 1.0:
            inputs = inputs * state.scale
        result = loss_and_gradients(parameters, inputs, self.l1_coefficient)
        project_decoder_gradient(parameters, result.gradients)
        if self.clip_norm is not None:
            clip_gradients(result.gradients, self.clip_norm)
        for parameter, gradient in zip(parameters, result.gradients, strict=True):
            parameter.grad = gradient
        state.optimizer.param_groups[0]["lr"] = self.learning_rate * self._rate(state.step, n_steps)
        state.optimizer.step()
        normalise_decoder(parameters)

        state.step += 1
        before = state.n_tokens
        state.n_tokens += len(batch)
        state.idle_tokens += len(batch)
        state.idle_tokens.masked_fill_(result.firings > 0, 0)
        dead = (state.idle_tokens >= self.dead_after).float().mean()
        measured = torch.stack(
            [
                result.reconstruction + self.l1_coefficient * result.l1,
                result.reconstruction,
                result.l1,
                result.firings.sum() / len(batch),
                dead,
            ]
        )
        n_resampled = self._resample(state, inputs, before, n_steps)
        state.unread.append((state.step, state.n_tokens, measured, n_resampled))

    def _rate(self, step: int, n_steps: int | None) -> float:
        """Factor on the learning rate: linear warm-up, then constant, then a linear fall to zero."""
        factor = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        if self.decay_fraction and n_steps is not None:
            factor *= min((n_steps - step) / (self.decay_fraction * n_steps), 1.0)
        return factor

    def _resample(self, state: _State, inputs: torch.Tensor, before: int, n_steps: int | None) -> int:
        every = self.resample_every
        if every is None or before // every == state.n_tokens // every:
            return 0
        if n_steps is not None and (n_steps - state.step) * len(inputs) < every:
            return 0  # too late to train them
        # A latent that fired since the last time has been idle for fewer tokens than lie between.
        dead = state.idle_tokens >= every
        moments = [
            state.optimizer.state[parameter][name]
            for parameter in state.parameters[:3]
            for name in ("exp_avg", "exp_avg_sq")
        ]
        generator = torch_generator(int(step_generator(state.seed, state.step).integers(2**31)))
        reset_latents(state.parameters, moments, dead, inputs, generator)
        state.idle_tokens[dead] = 0
        return int(dead.sum())

    def _flush(self, state: _State) -> dict[str, float]:
        """Move measurements from the device into the history; refuse a loss that is not finite."""
        for step, n_tokens, measured, n_resampled in state.unread:
            loss, reconstruction, l1, l0, dead = measured.tolist()
            if not np.isfinite(loss):
                raise ValueError(
                    f"The loss became {loss} at step {step}; lower learning_rate={self.learning_rate:g}, "
                    f"or set normalization (now {self.normalization!r}) if activations are large."
                )
            state.history.append(
                {
                    "step": step,
                    "n_tokens": n_tokens,
                    "loss": loss,
                    "reconstruction": reconstruction,
                    "l1": l1,
                    "l0": l0,
                    "dead": dead,
                    "n_resampled": n_resampled,
                }
            )
        state.unread.clear()
        return state.history[-1]

    def _publish(self, state: _State) -> SparseAutoencoder:
        """Set the fitted attributes, with the training scale folded into the biases."""
        self._flush(state)
        parameters = state.parameters
        self.encoder_ = parameters.encoder_weight.cpu().numpy().copy()
        self.decoder_ = parameters.decoder_weight.cpu().numpy().copy()
        self.encoder_bias_ = (parameters.encoder_bias / state.scale).cpu().numpy().copy()
        self.decoder_bias_ = (parameters.decoder_bias / state.scale).cpu().numpy().copy()
        self.n_latents_ = len(self.encoder_bias_)
        self._n_features_out = self.n_latents_
        self.scale_ = state.scale
        self.history_ = list(state.history)
        self.n_steps_ = state.step
        self.n_tokens_seen_ = state.n_tokens
        self.device_ = str(state.device)
        self._state: _State | tuple[dict[str, torch.Tensor], dict[str, Any]] = state
        return self

    # Checkpoints

    def _settings(self) -> dict[str, Any]:
        return plain_parameters(self, without=_INCIDENTAL)

    def _checkpoint(self, state: _State, rows: ArrayRows | StreamRows) -> None:
        self._flush(state)
        tensors, values = _pack(state)
        metadata = {**values, "settings": self._settings(), "data": rows.fingerprint}
        write_tensors(cast(str, self.checkpoint_path), tensors, kind=_CHECKPOINT, metadata=metadata)

    def _resume(self, rows: ArrayRows | StreamRows) -> _State | None:
        """State from the checkpoint, if there is one; refuse one of other settings or data."""
        n_steps = rows.n_steps(self.batch_size, self.n_epochs)
        found = read_checkpoint(
            self.checkpoint_path,
            kind=_CHECKPOINT,
            settings=self._settings(),
            random_state=self.random_state,
            made_with={"data": rows.fingerprint},
            state={**_STATE, "step": number(1, np.inf if n_steps is None else n_steps, whole=True)},
        )
        if found is None:
            return None
        tensors, values = found
        with refusing(cast(str, self.checkpoint_path)):
            sizes = check_tensors(tensors, _STATE_TENSORS)
            _check_directions(tensors["parameters.decoder_weight"])
            check_optimizer_tensors(tensors, values["step"])
            n_inputs = rows.sample.shape[1]
            n_latents = self.expansion * n_inputs if self.n_latents is None else self.n_latents
            if (sizes["n_latents"], sizes["n_inputs"]) != (n_latents, n_inputs):
                raise ValueError(f"its dictionary has the sizes {sizes}, not {n_latents} latents of {n_inputs} inputs")
            _check_history(values["history"], values["step"])
        return self._unpack(tensors, values)

    def _unpack(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> _State:
        device = resolve_device(self.device)
        parameters = Parameters(*(tensors[f"parameters.{name}"].to(device) for name in Parameters._fields))
        optimizer = self._optimizer(parameters)
        load_optimizer_tensors(optimizer, tensors)
        values = {name: metadata[name] for name in ("scale", "seed", "step", "n_tokens")}
        return _State(
            parameters, optimizer, tensors["idle_tokens"].to(device), **values, history=list(metadata["history"])
        )

    def __getstate__(self) -> dict[str, Any]:
        # Training state travels as plain CPU tensors, whatever device it is on.
        state = super().__getstate__().copy()
        if isinstance(state.get("_state"), _State):
            state["_state"] = _pack(state["_state"])
        return state

    # Inference

    def _parameters(self, device: torch.device) -> Parameters:
        arrays = (self.encoder_, self.encoder_bias_, self.decoder_, self.decoder_bias_)
        return Parameters(*(torch.tensor(array, device=device) for array in arrays))

    def _encoded(self, X: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows and their dense codes, as many at a time as memory is meant to hold."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, order="C", reset=False)
        device = resolve_device(self.device)
        parameters = self._parameters(device)
        piece = max(_CODES_AT_A_TIME // self.n_latents_, 1)
        for start in range(0, len(X), piece):
            inputs = torch.from_numpy(X[start : start + piece]).to(device)
            yield inputs, encode(parameters, inputs)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _check_history(history: list[dict[str, Any]], step: int) -> None:
    if not history or history[-1]["step"] != step:
        raise ValueError(f"its history does not end with step {step}")


def _check_directions(decoder: torch.Tensor) -> None:
    """Refuse a decoder whose directions are not of unit norm, as all of training leaves them."""
    norms = torch.linalg.vector_norm(decoder.double(), dim=1)
    if not bool(((norms - 1).abs() < 1e-4).all()):
        raise ValueError("the directions of its decoder are not of unit norm")


@dataclass
class _State:
    """All that a training step reads and writes."""

    parameters: Parameters
    optimizer: torch.optim.Adam
    idle_tokens: torch.Tensor  # tokens since each latent fired
    scale: float
    seed: int
    step: int = 0
    n_tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    unread: list[tuple[int, int, torch.Tensor, int]] = field(default_factory=list)  # measured, not yet in the history

    @property
    def device(self) -> torch.device:
        return self.idle_tokens.device


def _pack(state: _State) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A state as CPU tensors and JSON-able values."""
    tensors = {f"parameters.{name}": value for name, value in state.parameters._asdict().items()}
    tensors |= {"idle_tokens": state.idle_tokens, **optimizer_tensors(state.optimizer)}
    values = {"scale": state.scale, "seed": state.seed, "step": state.step, "n_tokens": state.n_tokens}
    return {name: tensor.cpu() for name, tensor in tensors.items()}, {**values, "history": state.history}


def _to_csr(codes: torch.Tensor) -> sp.csr_array:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        stored = codes.to_sparse_csr()
    index = np.int32 if stored.values().numel() < np.iinfo(np.int32).max else np.int64
    data = stored.values().cpu().numpy()
    columns, starts = (part.cpu().numpy().astype(index) for part in (stored.col_indices(), stored.crow_indices()))
    return sp.csr_array((data, columns, starts), shape=(codes.shape[0], codes.shape[1]))
