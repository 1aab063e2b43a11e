"""The dictionary of a teacher's features: a sparse autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from geofloor._files.schema import fields, mapping, number, optional, refusing, table
from geofloor._training.checkpoints import (
    Shape,
    check_optimizer_tensors,
    check_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
    read_tensors,
    steps_done,
    write_tensors,
)
from geofloor._training.devices import keep_freed_memory, memory_advice, resolve_device, to_device
from geofloor._training.progress import progress_bar
from geofloor._training.rows import ArrayRows, StreamRows, checked_batch, open_rows
from geofloor._training.seeds import draw_seed, step_generator, torch_generator
from geofloor._training.settings import (
    NOT_SAVED,
    check_betas,
    check_files,
    plain_parameters,
    read_checkpoint,
    saved_parameters,
)
from geofloor._validation import check_numeric, is_stream, warn_caller
from geofloor.features._autoencoder_settings import (
    Outcome,
    Settings,
    check_parameters,
    doubts,
    find_scale,
    outlier_share,
    resolve,
)
from geofloor.features._sparse_step import (
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
from geofloor.features._statistics import OutlierRowsWarning

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
_FITTED = {
    "scale_": number(0, open_low=True),
    "history_": _HISTORY,
    "n_steps_": _STEP,
    "n_tokens_seen_": _STEP,
    "l0_": optional(_STEP),
    "l1_coefficient_": number(0),
    "batch_size_": _STEP,
    "learning_rate_": number(0),
    "explained_variance_": optional(number(high=1)),
}
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
_MOST_HELD_OUT = 2048  # rows
_NOISE_ROWS = 8192  # of the data, that noise of the same covariance is mixed from
_OUTLIERS = 0.1  # share of the variance
# What does not change the result of a fit, and so may differ when it is resumed.
_INCIDENTAL = frozenset({"device", "verbose", "checkpoint_path", "checkpoint_every", "random_state"})


class SparseAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Learn an overcomplete dictionary in which activations have sparse, non-negative codes.

    Defaults suit anything from 5,000 rows to a billion, at any scale: what is ``"auto"`` follows from the
    number of rows and inputs, by the rules below. `paper` gives the settings of the paper.

    Parameters
    ----------
    n_latents : int or None, default=None
        Number of latents; None means `expansion` times the number of inputs.
    expansion : int or "auto", default="auto"
        Latents per input, where `n_latents` is None. ``"auto"`` is 32, but at most one latent per 8 rows
        where that leaves 2 per input.
    activation : {"topk", "relu"}, default="topk"
        ``"topk"`` keeps the `l0` largest codes of each row and needs no penalty [3]_. ``"relu"`` keeps all
        above zero and penalizes their sum, as the paper does.
    l0 : int or "auto", default="auto"
        Codes that ``"topk"`` keeps per row. ``"auto"`` is 4.5 √n_inputs, at most 128 and 4% of the latents.
    l1_coefficient : float or "auto", default="auto"
        λ of ``"relu"``, on the codes summed over latents and averaged over the batch. Its effect depends on
        the scale of the data: see `normalization`. ``"auto"`` is 0.8.
    normalization : {"spread", "mean_norm", "mean_square", None}, default="spread"
        Scale on which the autoencoder is trained. ``"spread"``: the median distance of a row from the median
        row is √n_inputs, whatever offset and outliers the data have. ``"mean_norm"``: E‖x‖ = √n_inputs.
        ``"mean_square"``: E‖x‖² = 1. None: the data's own. The scale is folded into the biases and codes
        afterwards, so that codes and reconstructions are always those of the data as given.
    learning_rate : float or "auto", default="auto"
        Adam's step size. ``"auto"`` is 0.024 / √n_inputs, and smaller by the root of the steps beyond 3,600.
    betas : tuple of two floats, default=(0.9, 0.999)
        Adam's decay rates.
    clip_norm : float or None, default=1.0
        Largest joint norm of the gradients; None leaves them.
    warmup_steps : int or "auto", default="auto"
        Steps over which the learning rate rises linearly. ``"auto"`` is a twentieth of the steps, at most 1,000.
    decay_fraction : float or "auto", default="auto"
        Final share of the steps over which the learning rate falls linearly to zero. ``"auto"`` is 0.3, and 0
        for streams of unknown length.
    batch_size : int or "auto", default="auto"
        Tokens per step. ``"auto"`` is a power of 2 from 128 to 1,024, about a 256th of the rows, and up to 8,192
        for epochs of over 20,000 steps.
    n_epochs : int or "auto", default="auto"
        Passes over the data. ``"auto"`` is as many as make 3,600 steps, and 1 for streams of unknown length.
    resample_every : int or None, default=None
        Tokens after which latents that have not fired since the last such time are pointed at inputs
        that are reconstructed badly [2]_. The last time leaves at least as many tokens to train them. None, as
        in the paper, lets latents die.
    dead_after : int, default=100_000
        Tokens without firing after which a latent counts as dead in `history_`.
    validation_fraction : float, default=0.05
        Share of the rows, the first ones and at most 2,048, that `fit` holds out to judge the result by.
    checkpoint_path : str, path or None, default=None
        File that `fit` keeps its state in. If it exists, from the same settings and data, `fit` goes on
        from there to the result of a run never stopped. Data are told by a checksum of all rows; of a stream,
        by one of its first rows, which are at most 65,536.
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
    l0_ : int or None
        Codes that stay per row; None for ``"relu"``.
    l1_coefficient_ : float
        λ; 0 for ``"topk"``.
    batch_size_ : int
        Tokens per step.
    learning_rate_ : float
        Adam's step size after warm-up.
    scale_ : float
        Factor on the data during training.
    explained_variance_ : float or None
        `score` of the rows that were held out; None if there were none.
    history_ : list of dict
        For each step: ``step``, ``n_tokens`` seen, ``loss``, ``reconstruction`` (squared error per
        token), ``l1`` (sum of codes per token), ``l0`` (codes above zero per token), ``dead`` (share of
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

    Warns
    -----
    ConvergenceWarning
        From `fit`, once, with the reasons and what to change: fewer than 5,000 rows or 500 steps, a loss or
        L0 that still falls, codes that are not sparse, most latents dead, held-out rows that are explained badly
        or hardly better than Gaussian noise of the same covariance.
    OutlierRowsWarning
        From `fit`, if a handful of rows carry much of the variance.

    See Also
    --------
    FeatureStatistics : Measures the features on the codes.
    ActivationExtractor : Gives a language model's activations.

    Notes
    -----
    For inputs x of n_inputs dimensions the codes are
    :math:`z = \mathrm{ReLU}(W_{enc}(x - b_{dec}) + b_{enc})`, of which ``"topk"`` keeps the largest, the
    reconstruction is :math:`\hat x = W_{dec}^\top z + b_{dec}`, and the loss is

    .. math:: \lVert x - \hat x \rVert^2 + \lambda \sum_j |z_j|,

    summed over inputs and latents and averaged over the batch ([1]_, Section 5.1 and Appendix D).
    The decoder's gradient is projected off its directions, all gradients are clipped, Adam steps, and
    the directions are brought back to unit norm. The decoder bias starts at the mean of the data.

    The rules for ``"auto"`` were chosen on three blocks of the embedded teacher, one of SmolLM2-135M and synthetic
    sparse features: measured, not derived.

    On a CPU the same seed, data and number of threads give the same bits.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.
    .. [2] Bricken et al. (2023), "Towards Monosemanticity", Transformer Circuits Thread.
    .. [3] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import SparseAutoencoder
    >>> rng = np.random.default_rng(0)
    >>> features = rng.random((6000, 12)) * (rng.random((6000, 12)) < 0.1)
    >>> activations = features @ rng.normal(size=(12, 8))
    >>> sae = SparseAutoencoder(24, l0=2, random_state=0).fit(activations)
    >>> codes = sae.transform(activations)
    >>> codes.format, codes.shape
    ('csr', (6000, 24))
    >>> sae.explained_variance_ > 0.9
    True
    """

    def __init__(
        self,
        n_latents: int | None = None,
        *,
        expansion: int | str = "auto",
        activation: str = "topk",
        l0: int | str = "auto",
        l1_coefficient: float | str = "auto",
        normalization: str | None = "spread",
        learning_rate: float | str = "auto",
        betas: tuple[float, float] = (0.9, 0.999),
        clip_norm: float | None = 1.0,
        warmup_steps: int | str = "auto",
        decay_fraction: float | str = "auto",
        batch_size: int | str = "auto",
        n_epochs: int | str = "auto",
        resample_every: int | None = None,
        dead_after: int = 100_000,
        validation_fraction: float = 0.05,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_latents = n_latents
        self.expansion = expansion
        self.activation = activation
        self.l0 = l0
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
        self.validation_fraction = validation_fraction
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @classmethod
    def paper(cls, n_latents: int | None = None, **changes: Any) -> SparseAutoencoder:
        """Make an autoencoder with the paper's settings.

        32 latents per input, ReLU with λ = 8e-4 on the data's own scale, Adam at 3e-4 without schedule, one pass
        in batches of 32,768, as in Section 5.1 and Appendix D of the paper. They need millions of tokens.

        Parameters
        ----------
        n_latents : int or None, default=None
            Number of latents; None means 32 per input.
        **changes : object
            Parameters of the class that differ from the paper's.

        Returns
        -------
        sae : SparseAutoencoder
            Not fitted.

        Examples
        --------
        >>> from geofloor import SparseAutoencoder
        >>> SparseAutoencoder.paper(random_state=0).l1_coefficient
        0.0008
        """
        settings: dict[str, Any] = {
            "expansion": 32 if n_latents is None else "auto",
            "activation": "relu",
            "l1_coefficient": 8e-4,
            "normalization": None,
            "learning_rate": 3e-4,
            "warmup_steps": 0,
            "decay_fraction": 0.0,
            "batch_size": 32_768,
            "n_epochs": 1,
            "validation_fraction": 0.0,
        }
        return cls(n_latents, **{**settings, **changes})

    def fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train on activations.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs), or iterable of such batches
            Activations of any floating type, tensors included. An array, memory map or `ActivationStore` is
            read in a random order that changes each epoch; memory maps and stores are read batch by batch. The
            batches of an iterable, such as a generator or a list of arrays, are cut to `batch_size`, whatever
            their own sizes. If there are at most 65,536 rows and 128 MiB, they are read at once, as an array;
            else they are taken in the order given, which should be random. For several epochs an iterable must
            be iterable again. A resumed `fit` reads an iterable again from its start, and drops the rows already
            trained on. If ``n_epochs=1`` and the iterable has a method ``iter_from(row)``, it reads the first batches
            and then those from the next row on.
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
        MemoryError
            If a batch does not fit into memory.
        """
        check_parameters(self)
        check_files(self)
        rows = self._open(X)
        self._warn_of_outliers(rows.sample)
        held_out = rows.hold_out(self._n_held_out(rows))
        settings = resolve(self, rows, rows.sample.shape[1])
        state = self._resume(rows, settings) or self._start(rows.sample, draw_seed(self.random_state), settings)
        keep_freed_memory(state.device)
        batches = rows.batches(settings.batch_size, settings.n_epochs, state.step, state.seed)
        bar = progress_bar("sparse autoencoder", total=settings.n_steps, initial=state.step, verbose=self.verbose)
        with bar, memory_advice(f"lower batch_size={settings.batch_size} or the latents, {settings.n_latents}"):
            for batch in batches:
                self._step(state, batch)
                bar.update()
                if state.step % self.checkpoint_every == 0 and self.checkpoint_path is not None:
                    self._checkpoint(state, rows)
                if state.step % _FLUSH_EVERY == 0:
                    row = self._flush(state)
                    bar.set_postfix(loss=f"{row['loss']:.4g}", l0=f"{row['l0']:.1f}", dead=f"{row['dead']:.0%}")
        self._publish(state)  # first, so that it is there even if no more can be written
        if self.checkpoint_path is not None:
            self._checkpoint(state, rows)
        self._judge(state, rows, held_out)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train one pass over more activations, in the order given.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations; the first call sets the mean and the scale that training starts from. What is ``"auto"``
            is chosen as for a stream of unknown length.
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
        check_parameters(self)
        first = not hasattr(self, "encoder_")
        X = self._checked(X, reset=first)
        settings = resolve(self, None, X.shape[1])
        state = self._start(X, draw_seed(self.random_state), settings) if first else self._continue(settings)
        keep_freed_memory(state.device)
        for start in range(0, len(X), settings.batch_size):
            self._step(state, X[start : start + settings.batch_size])
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
        codes = check_array(check_numeric(X, "X"), accept_sparse="csr", dtype=np.float32, input_name="X")
        if codes.shape[1] != self.n_latents_:
            raise ValueError(f"X has {codes.shape[1]} latents, but the dictionary has n_latents_={self.n_latents_}.")
        return codes @ self.decoder_ + self.decoder_bias_

    def score(self, X: Any, y: Any = None) -> float:
        """Explained variance of the reconstruction, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖².

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs), or iterable of such batches
            Activations, preferably held out. Memory maps, stores and iterables are read batch by batch.
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
            residual = (inputs - decode(parameters, codes)).double()
            error += float(residual.square().sum())
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
            check_parameters(sae)
            _check_history(content["fitted"]["history_"], content["fitted"]["n_steps_"])
        for name, tensor in tensors.items():
            setattr(sae, f"{name}_", tensor.numpy())
        for name, value in content["fitted"].items():
            setattr(sae, name, value)
        sae.n_latents_, sae.n_features_in_ = sae.encoder_.shape
        sae._n_features_out = sae.n_latents_
        sae.device_ = str(resolve_device(device))
        return sae

    @staticmethod
    def steps_done(checkpoint_path: str | os.PathLike[str]) -> int:
        """Read how many steps of a `fit` its checkpoint holds.

        Parameters
        ----------
        checkpoint_path : str or path
            The file given to that `fit` as `checkpoint_path`.

        Returns
        -------
        n_steps : int
            Steps taken; 0 if there is no such file, as before the first checkpoint.

        Raises
        ------
        FileNotFoundError
            If the path is a folder or a device.
        ValueError
            If the file is truncated, altered or no checkpoint of a sparse autoencoder.

        Notes
        -----
        The call reads the whole file to verify its checksum. It may be called while `fit` runs, because `fit`
        replaces the file atomically.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from geofloor import SparseAutoencoder
        >>> rng = np.random.default_rng(0)
        >>> features = rng.random((6000, 12)) * (rng.random((6000, 12)) < 0.1)
        >>> activations = features @ rng.normal(size=(12, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/checkpoint.safetensors"
        ...     before = SparseAutoencoder.steps_done(path)
        ...     sae = SparseAutoencoder(24, l0=2, checkpoint_path=path, random_state=0).fit(activations)
        ...     before, SparseAutoencoder.steps_done(path) == sae.n_steps_
        (0, True)
        """
        return steps_done(checkpoint_path, kind=_CHECKPOINT)

    # Training

    def _open(self, X: Any) -> ArrayRows | StreamRows:
        """Wrap the data, having checked what can be checked without reading all of a large one."""
        if is_stream(X):
            stream = open_rows(X, stream=True)
            validate_data(self, stream.sample[:1], dtype=np.float32)
            return stream
        if _is_on_disk(X):
            self._checked(np.asarray(X[:1]), reset=True)
            return open_rows(X, stream=False)
        return open_rows(self._checked(X, reset=True), stream=False)

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        X = check_numeric(X, "X")
        shape = tuple(getattr(X, "shape", ()))
        if len(shape) > 2:
            raise ValueError(f"X has shape {shape}; give one row per token: X.reshape(-1, {shape[-1:][0]}).")
        return validate_data(self, X, dtype=np.float32, order="C", reset=reset)

    def _n_held_out(self, rows: ArrayRows | StreamRows) -> int:
        n_rows = len(rows.sample) if rows.n_rows is None else rows.n_rows
        return min(int(self.validation_fraction * n_rows), _MOST_HELD_OUT, len(rows.sample) // 2)

    def _warn_of_outliers(self, sample: np.ndarray) -> None:
        n_outlying, share = outlier_share(sample)
        if share > _OUTLIERS:
            warn_caller(
                f"X has {n_outlying} row(s) in {len(sample):,} with {share:.0%} of the variance, each over ten times "
                "as far from the median row as half of the rows are: attention sinks, perhaps. They decide what is "
                "learned and every second moment; drop them, or raise skip_first of the ActivationExtractor.",
                OutlierRowsWarning,
            )

    def _judge(self, state: _State, rows: ArrayRows | StreamRows, held_out: np.ndarray) -> None:
        """Measure held-out rows, and noise of the same covariance, and warn of a result not to be trusted."""
        explained: float | None = None
        noise = None
        if len(held_out) > 1:
            explained = self.score(held_out)
            seen = rows.sample[:_NOISE_ROWS].astype(np.float64)
            mean = seen.mean(axis=0)
            mixing = step_generator(state.seed, state.step).standard_normal((len(held_out), len(seen)))
            noise = self.score((mixing @ (seen - mean)) / np.sqrt(len(seen)) + mean)
        self.explained_variance_: float | None = explained
        n_rows = None if rows.n_rows is None else rows.n_rows + len(held_out)
        found = doubts(Outcome(state.history, state.settings, n_rows, explained, noise))
        if found:
            warn_caller(f"The sparse autoencoder is not to be trusted: {'; '.join(found)}.", ConvergenceWarning)

    def _start(self, sample: np.ndarray, seed: int, settings: Settings) -> _State:
        """State before the first step, from a sample of the rows."""
        scale = find_scale(sample, self.normalization)
        bias = torch.from_numpy((scale * sample.mean(axis=0, dtype=np.float64)).astype(np.float32))
        device = resolve_device(self.device)
        parameters = initialise(settings.n_latents, bias, torch_generator(seed))
        parameters = Parameters(*(parameter.to(device) for parameter in parameters))
        idle_tokens = torch.zeros(settings.n_latents, dtype=torch.int64, device=device)
        optimizer = self._optimizer(parameters)
        return _State(parameters, optimizer, idle_tokens, settings, scale=scale, seed=seed)

    def _continue(self, settings: Settings) -> _State:
        """State to train on from: what training left or, after `load`, the weights with a new optimizer."""
        settings = settings._replace(n_latents=self.n_latents_, l0=self.l0_, l1_coefficient=self.l1_coefficient_)
        if hasattr(self, "_state"):
            state = self._state if isinstance(self._state, _State) else self._unpack(*self._state, settings)
            state.settings = settings
            return state
        parameters = self._parameters(resolve_device(self.device))
        parameters.encoder_bias.mul_(self.scale_)
        parameters.decoder_bias.mul_(self.scale_)
        return _State(
            parameters,
            self._optimizer(parameters),
            torch.zeros(self.n_latents_, dtype=torch.int64, device=parameters.encoder_bias.device),
            settings,
            scale=self.scale_,
            seed=draw_seed(self.random_state),
            step=self.n_steps_,
            n_tokens=self.n_tokens_seen_,
            history=list(self.history_),
        )

    def _optimizer(self, parameters: Parameters) -> torch.optim.Adam:
        return torch.optim.Adam(list(parameters), betas=check_betas("betas", self.betas), fused=True)

    def _step(self, state: _State, batch: np.ndarray) -> None:
        """Take one step of Adam, in place."""
        parameters, settings = state.parameters, state.settings
        inputs = to_device(batch, state.device)
        if state.scale != 1.0:
            inputs = inputs * state.scale
        result = loss_and_gradients(parameters, inputs, settings.l1_coefficient, settings.l0)
        project_decoder_gradient(parameters, result.gradients)
        if self.clip_norm is not None:
            clip_gradients(result.gradients, self.clip_norm)
        for parameter, gradient in zip(parameters, result.gradients, strict=True):
            parameter.grad = gradient
        state.optimizer.param_groups[0]["lr"] = settings.rate(state.step)
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
                result.reconstruction + settings.l1_coefficient * result.l1,
                result.reconstruction,
                result.l1,
                result.firings.sum() / len(batch),
                dead,
            ]
        )
        n_resampled = self._resample(state, inputs, before)
        state.unread.append((state.step, state.n_tokens, measured, n_resampled))

    def _resample(self, state: _State, inputs: torch.Tensor, before: int) -> int:
        every, n_steps = self.resample_every, state.settings.n_steps
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
        reset_latents(state.parameters, moments, dead, inputs, generator, state.settings.l0)
        state.idle_tokens[dead] = 0
        return int(dead.sum())

    def _flush(self, state: _State) -> dict[str, float]:
        """Move measurements from the device into the history; refuse a loss that is not finite."""
        for step, n_tokens, measured, n_resampled in state.unread:
            loss, reconstruction, l1, l0, dead = measured.tolist()
            if not np.isfinite(loss):
                raise ValueError(
                    f"The loss became {loss} at step {step}; lower learning_rate={state.settings.learning_rate:g}, "
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
        self.l0_, self.l1_coefficient_ = state.settings.l0, state.settings.l1_coefficient
        self.batch_size_, self.learning_rate_ = state.settings.batch_size, state.settings.learning_rate
        self.explained_variance_ = None
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

    def _resume(self, rows: ArrayRows | StreamRows, settings: Settings) -> _State | None:
        """State from the checkpoint, if there is one; refuse one of other settings or data."""
        if self.checkpoint_path is None:
            return None
        n_steps = settings.n_steps
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
        with refusing(self.checkpoint_path):
            sizes = check_tensors(tensors, _STATE_TENSORS)
            _check_directions(tensors["parameters.decoder_weight"])
            check_optimizer_tensors(tensors, values["step"])
            n_inputs = rows.sample.shape[1]
            if (sizes["n_latents"], sizes["n_inputs"]) != (settings.n_latents, n_inputs):
                raise ValueError(
                    f"its dictionary has the sizes {sizes}, not {settings.n_latents} latents of {n_inputs} inputs"
                )
            if values["scale"] != find_scale(rows.sample, self.normalization):
                raise ValueError(f"its scale, {values['scale']:g}, is not that of the data")
            _check_history(values["history"], values["step"])
        return self._unpack(tensors, values, settings)

    def _unpack(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], settings: Settings) -> _State:
        device = resolve_device(self.device)
        parameters = Parameters(*(tensors[f"parameters.{name}"].to(device) for name in Parameters._fields))
        optimizer = self._optimizer(parameters)
        load_optimizer_tensors(optimizer, tensors)
        values = {name: metadata[name] for name in ("scale", "seed", "step", "n_tokens")}
        idle_tokens, history = tensors["idle_tokens"].to(device), list(metadata["history"])
        return _State(parameters, optimizer, idle_tokens, settings, **values, history=history)

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
        """Yield rows and their dense codes, as many at a time as memory is meant to hold."""
        check_is_fitted(self)
        if is_stream(X):
            is_empty = True
            for batch in X:
                is_empty = False
                yield from self._encoded(checked_batch(batch))
            if is_empty:
                raise ValueError("X gave no batch; give an iterable of at least one, and a generator only once.")
            return
        device = resolve_device(self.device)
        parameters = self._parameters(device)
        piece = max(_CODES_AT_A_TIME // self.n_latents_, 1)
        on_disk = _is_on_disk(X)
        if not on_disk:
            X = self._checked(X, reset=False)
        for start in range(0, len(X), piece):
            rows = X[start : start + piece]
            inputs = to_device(self._checked(np.asarray(rows), reset=False) if on_disk else rows, device)
            yield inputs, encode(parameters, inputs, self.l0_)

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
    settings: Settings
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


def _is_on_disk(X: Any) -> bool:
    """Tell memory maps and stores, which are read piece by piece."""
    return isinstance(X, np.memmap) or hasattr(X, "iter_batches")


def _to_csr(codes: torch.Tensor) -> sp.csr_array:
    fires = codes > 0
    data, columns = codes[fires].cpu().numpy(), fires.nonzero()[:, 1].cpu().numpy()
    starts = np.concatenate([[0], fires.sum(dim=1).cumsum(dim=0).cpu().numpy()])
    index = np.int32 if len(data) < np.iinfo(np.int32).max else np.int64
    return sp.csr_array((data, columns.astype(index), starts.astype(index)), shape=(codes.shape[0], codes.shape[1]))
