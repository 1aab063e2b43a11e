"""Learn a dictionary of a teacher's features: a sparse autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from geofloor._files.schema import refusing
from geofloor._training.callbacks import CallbackSupportMixin, FitTasks, attributes_set
from geofloor._training.checkpoints import steps_done
from geofloor._training.devices import resolve_device, to_device
from geofloor._training.processes import ALONE, Processes, join_processes
from geofloor._training.reports import Reports, check_report_to
from geofloor._training.rows import ArrayRows, StreamRows, checked_batch, digest_sample, open_rows
from geofloor._training.seeds import draw_seed, step_generator
from geofloor._training.settings import NOT_SAVED, check_files, plain_parameters, saved_parameters
from geofloor._validation import (
    check_choice,
    check_numeric,
    is_stream,
    warn_caller,
)
from geofloor.features._array_weights import read_arrays
from geofloor.features._autoencoder_doubts import Outcome, find_doubts, find_outliers, noise_like
from geofloor.features._autoencoder_files import (
    CHECKPOINT,
    FITTED,
    CheckpointFile,
    pack_state,
    read_autoencoder,
    unpack_state,
    write_autoencoder,
)
from geofloor.features._autoencoder_settings import (
    ACTIVATIONS,
    Settings,
    check_groups_fit,
    check_parameters,
    resolve_settings,
)
from geofloor.features._encoding import Rule, encode_by
from geofloor.features._folding import FoldedDictionary, fold
from geofloor.features._precision import check_precision
from geofloor.features._saelens import write_saelens
from geofloor.features._sparse_codes import encode_sparse
from geofloor.features._sparse_step import Parameters, decode
from geofloor.features._statistics import OutlierRowsWarning
from geofloor.features._trainer import TrainingState, start_training, train, train_steps, wrap_weights

_CODES_AT_A_TIME = 2**24
_MAX_HELD_OUT = 2048  # rows
_WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_", "threshold_", "code_scale_")
# Parameters that do not change the result of a fit, and may differ when it resumes.
_INCIDENTAL = frozenset({"device", "verbose", "report_to", "checkpoint_path", "checkpoint_every", "random_state"})


class SparseAutoencoder(CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Sparse autoencoder: an overcomplete dictionary with sparse, non-negative codes of activations.

    The defaults suit 5,000 to a billion rows at any scale. Each ``"auto"`` follows from the number of rows and inputs,
    by the rule given with the parameter. `paper` gives the settings of the paper.

    Parameters
    ----------
    n_latents : int or None, default=None
        Number of latents; None means `expansion` times the number of inputs.
    expansion : int or "auto", default="auto"
        Latents per input if `n_latents` is None. ``"auto"`` is 32, lowered if need be to leave 8 rows per latent, but
        not below 2.
    activation : {"topk", "batchtopk", "jumprelu", "relu"}, default="topk"
        ``"topk"`` keeps the `l0` largest codes of each row and needs no penalty [3]_. ``"batchtopk"`` keeps the
        largest codes of each training batch, `l0` per row on average, so that rows with more features get more
        codes [4]_. ``"jumprelu"`` keeps the codes above a threshold per latent, trained until rows have `l0` codes on
        average [5]_. ``"relu"`` keeps all codes above zero and penalizes their sum, as in the paper.
        If `l0` is given, the penalty is steered until rows have `l0` codes on average.
    l0 : int or "auto", default="auto"
        Codes per row: kept by ``"topk"``, kept on average by ``"batchtopk"``, the target of ``"jumprelu"``
        and ``"relu"``. ``"auto"`` is 4.5 √n_inputs, at most 128 and at most 4% of the latents; with ``"relu"`` it is
        no target, and `l1_coefficient` gives the sparsity.
    l1_coefficient : float or "auto", default="auto"
        Penalty λ of ``"relu"`` on the codes, summed over latents and averaged over the batch. Its effect depends on
        the scale of the data: see `normalization`. ``"auto"`` is 0.8. It is an error with other activations, and
        together with `l0`.
    normalization : {"spread", "mean_norm", "mean_square", None}, default="spread"
        Scale of training. ``"spread"``: the median distance of a row from the median row is √n_inputs, for any offset
        and any outliers. ``"mean_norm"``: E‖x‖ = √n_inputs. ``"mean_square"``: E‖x‖² = 1. None: the data's own scale.
        Training folds the scale into the biases, so that codes and reconstructions are on the scale of the data.
    learning_rate : float or "auto", default="auto"
        Adam's step size. ``"auto"`` is 0.024 / √n_inputs. For over 3,600 steps it is divided by √(n_steps / 3,600).
    betas : tuple of two floats, default=(0.9, 0.999)
        Adam's decay rates.
    clip_norm : float or None, default=1.0
        Largest joint norm of the gradients; None for no clipping.
    warmup_steps : int or "auto", default="auto"
        Steps of linear warm-up of the learning rate. ``"auto"`` is a twentieth of the steps, at most 1,000.
    decay_fraction : float or "auto", default="auto"
        Final share of the steps with linear decay of the learning rate to zero. ``"auto"`` is 0.3, and 0 for streams
        of unknown length.
    batch_size : int or "auto", default="auto"
        Tokens per step. ``"auto"`` is a power of 2 from 128 to 1,024, about a 256th of the rows, and up to 8,192
        if an epoch would otherwise have over 20,000 steps.
    n_epochs : int or "auto", default="auto"
        Passes over the data. ``"auto"`` gives at least 3,600 steps, and is 1 for streams of unknown length.
    resample_every : int or None, default=None
        Tokens between resets of dead latents, that is, latents without firings since the last reset. A reset points
        them at badly reconstructed inputs [2]_. The last reset leaves at least as many tokens to train them. None, as
        in the paper, resets none.
    auxk_coefficient : float or "auto", default="auto"
        Weight α of the auxiliary loss that brings dead latents back: see Notes. ``"auto"`` is 1/32, and 0 means none.
        ``"relu"`` has no such loss, and any number is an error with it.
    groups : sequence of int or None, default=None
        Numbers of latents of nested prefixes of the dictionary, increasing and ending with `n_latents`, such as
        ``(256, 1024, 4096)``. Each prefix is trained to reconstruct alone, so that early latents are the most
        important [6]_. The loss is the sum of their squared errors. For ``"topk"`` and ``"batchtopk"``.
        If it is given, it may replace `n_latents`.
    dead_after : int, default=100_000
        Tokens without firing after which a latent counts as dead, in `history_` and for the auxiliary loss.
    validation_fraction : float, default=0.05
        Share of the rows held out by `fit` to score the result: the first rows, at most 2,048.
    checkpoint_path : str, path or None, default=None
        File for the state of `fit`. If it exists, `fit` resumes from it, to the bits of an uninterrupted run. A file of
        other settings or other data is refused. Data are identified by a checksum of all rows, or of the first
        rows of a stream, at most 65,536.
    checkpoint_every : int, default=100
        Steps between checkpoints.
    random_state : int, RandomState or None, default=None
        Seed of the initial directions, of the order of the rows and of resets.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``.
    precision : {"float32", "bf16"}, default="float32"
        Precision of the encoder's product in training. ``"bf16"`` rounds its factors to bfloat16, and needs a GPU or
        CPU with bfloat16 in hardware. Weights, optimizer, thresholds, losses and `transform` stay in float32.
    verbose : int, default=0
        Whether to show a progress bar.
    report_to : str, list of str or None, default=None
        Trackers that get every twentieth row of `history_`, as in `DistilledStudent`.

    Attributes
    ----------
    encoder_ : ndarray of shape (n_latents_, n_features_in_), float32
        Encoder weight.
    encoder_bias_ : ndarray of shape (n_latents_,), float32
        Encoder bias.
    decoder_ : ndarray of shape (n_latents_, n_features_in_), float32
        Directions of the latents, one per row, of unit norm.
    decoder_bias_ : ndarray of shape (n_features_in_,), float32
        Bias subtracted before encoding and added after decoding.
    n_latents_ : int
        Number of latents.
    threshold_ : ndarray of shape (n_latents_,), float32, or None
        Number that a code must exceed to be kept, on the scale of the data; None for ``"topk"`` and ``"relu"``.
    code_scale_ : ndarray of shape (n_latents_,), float32, or None
        Factor on the chosen codes of published weights that choose codes on another scale; None after a fit.
    source_ : dict or None
        ``"format"``, ``"model"`` and ``"hook"`` of a published file, each None if unknown; None for other weights.
    activation_ : str
        Activation of the fit. Published weights can have others: ``"groupmax"`` keeps the largest code of each of `l0_`
        groups, ``"linear_topk"`` and ``"abstopk"`` keep codes below zero.
    l0_ : int or None
        Codes kept per row, on average for ``"batchtopk"``; the target of ``"jumprelu"`` and ``"relu"``. It is None if
        ``"relu"`` has no target.
    l1_coefficient_ : float
        Penalty λ, after the last step if it was steered; 0 for all activations but ``"relu"``.
    batch_size_ : int or None
        Tokens per step; None for published weights.
    learning_rate_ : float or None
        Adam's step size after warm-up; None for published weights.
    scale_ : float
        Factor on the data during training.
    explained_variance_ : float or None
        Score of the held-out rows; None if there were none.
    history_ : list of dict
        Measurements of each step: ``step``, ``n_tokens`` seen, ``loss``, ``reconstruction`` (squared error per
        token), ``l1`` (sum of codes per token), ``l0`` (codes above zero per token), ``dead`` (share of
        latents without firings for `dead_after` tokens) and ``n_resampled`` (number of latents reset). ``loss``,
        ``reconstruction`` and ``l1`` are on the scale of training.
    n_steps_ : int
        Steps taken.
    n_tokens_seen_ : int
        Tokens trained on.
    device_ : str
        Device of the training.
    n_features_in_ : int
        Number of inputs d.

    Warns
    -----
    ConvergenceWarning
        From `fit`, once, with the reasons and their remedies: fewer than 5,000 rows or 500 steps, a loss or
        L0 still falling, dense codes, as many codes as inputs, an L0 of held-out rows over 10% off `l0`, over two
        thirds of the latents dead, less than half of the held-out variance explained, or hardly more of it than of
        Gaussian noise of the same covariance.
    OutlierRowsWarning
        From `fit`, if a handful of rows carry over a tenth of the variance.

    See Also
    --------
    FeatureStatistics : Measures the features on the codes.
    ActivationExtractor : Gives a language model's activations.
    geofloor.features.fit_autoencoders : Fit several in one pass.
    geofloor.language_models.dictionary_report : Judge the dictionary by the loss of its teacher.

    Notes
    -----
    The codes of inputs x of n_inputs dimensions are
    :math:`z = \mathrm{ReLU}(W_{enc}(x - b_{dec}) + b_{enc})`; ``"topk"`` sets all but the largest of them to zero.
    ``"batchtopk"`` does so in training with the codes of a whole batch. To encode, it keeps the codes above one
    threshold instead, so that the codes of a row do not depend on other rows. That threshold is the running mean, over
    about 100 steps, of the largest code that a batch leaves out.
    ``"jumprelu"`` adds :math:`50 \lVert x - \hat x \rVert^2 (L_0 / l_0 - 1)^2` to the loss, with the squared error as a
    constant. The thresholds get straight-through gradients with a rectangular kernel, and a constant learning rate.
    The width of the kernel is 0.3 √(n_inputs / l0) times the spread, that is, the median distance of a row from the
    decoder bias over √n_inputs.
    ``"relu"`` with `l0` multiplies λ after each step by exp(g · (L0 / l0 − 1)), with the excess cut to ±0.1 and
    g = 0.015 √(3,600 / n_steps). λ starts at 0.8 times the spread.
    All but ``"relu"`` train dead latents by an auxiliary loss, :math:`\alpha \lVert e - \hat e \rVert^2` ([3]_,
    Appendix A.2). Of each row, the n_inputs // 2 dead latents with the largest pre-activations reconstruct the error
    :math:`e = x - \hat x`, as a constant: :math:`\hat e = W_{dec}^\top z`, without the decoder bias. This loss gives
    gradients only to the dead latents, and none to the decoder bias. `history_` leaves it out.
    With `groups`, the first m latents reconstruct ``codes[:, :m] @ decoder_[:m] + decoder_bias_``. ``loss`` in
    `history_` is the sum over all prefixes, and ``reconstruction`` is the error of the last.
    The reconstruction is :math:`\hat x = W_{dec}^\top z + b_{dec}`, and the loss is

    .. math:: \lVert x - \hat x \rVert^2 + \lambda \sum_j |z_j|,

    summed over inputs and latents and averaged over the batch ([1]_, Section 5.1 and Appendix D).
    A step removes the component of the decoder's gradient along each direction, clips all gradients, takes a step of
    Adam and scales the directions to unit norm. The decoder bias starts at the mean of the data.

    The rules for ``"auto"`` were measured, not derived: on three blocks of the embedded teacher, one block of
    SmolLM2-135M and synthetic sparse features.

    On features of known directions with rates down to 0.1%, 1.3 per row, ``"topk"`` found all with 4 codes per row.
    With 2, ``"batchtopk"`` found at least 94% and ``"jumprelu"`` 96%, and ``"relu"`` 98% with 8. Without the auxiliary
    loss ``"batchtopk"`` found 64%. Too many codes split features: with 16, ``"relu"`` found 61% to 71% (measured:
    ``benchmarks/results/dictionaries.txt``).

    With `groups`, the order of the latents is nearly that of their importances. Eq. 2 of [1]_ adds the importances of
    dropped latents to the error. With `groups` that sum was within 5% of the error measured, and in a plain dictionary
    the error was up to 1.6 times the sum (measured: ``benchmarks/results/nested_dictionaries.txt``).

    On a CPU the same seed, data and number of threads give the same bits. If `l0` is at most a quarter of the latents,
    ``"topk"`` and ``"batchtopk"`` train on CPUs by compiled kernels, and so does ``"relu"`` on each batch with an L0
    below an eighth of the latents. Only the encoder's product is dense then, and the result is that of dense products
    up to rounding. The first fit compiles the kernels in seconds, and later processes find them cached.

    With a scikit-learn that has `sklearn.callback`, callbacks given to `set_callbacks` see one task per 20 steps of
    `fit`, with the last row of `history_` as ``metadata``. If `on_fit_task_end` of one returns True, training stops
    there, without a decay of the learning rate. A checkpoint records the stop.

    On a CUDA device ``"topk"`` gathers the chosen directions in place of dense products if `l0` is at most a 128th of
    the latents (speed not measured). Its sums have no fixed order there.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.
    .. [2] Bricken et al. (2023), "Towards Monosemanticity", Transformer Circuits Thread.
    .. [3] Gao et al. (2024), "Scaling and evaluating sparse autoencoders", arXiv:2406.04093.
    .. [4] Bussmann et al. (2024), "BatchTopK Sparse Autoencoders", arXiv:2412.06410.
    .. [5] Rajamanoharan et al. (2024), "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
       Autoencoders", arXiv:2407.14435.
    .. [6] Bussmann et al. (2025), "Learning Multi-Level Features with Matryoshka Sparse Autoencoders",
       arXiv:2503.17547.

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
        auxk_coefficient: float | str = "auto",
        groups: Sequence[int] | None = None,
        dead_after: int = 100_000,
        validation_fraction: float = 0.05,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        precision: str = "float32",
        verbose: int = 0,
        report_to: str | Sequence[str] | None = None,
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
        self.auxk_coefficient = auxk_coefficient
        self.groups = groups
        self.dead_after = dead_after
        self.validation_fraction = validation_fraction
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.precision = precision
        self.verbose = verbose
        self.report_to = report_to

    @classmethod
    def paper(cls, n_latents: int | None = None, **changes: Any) -> SparseAutoencoder:
        """Make an autoencoder with the paper's settings.

        Section 5.1 and Appendix D of the paper give 32 latents per input, ReLU with λ = 8e-4 on the data's own scale,
        Adam at 3e-4 without schedule, and one pass in batches of 32,768. These settings need millions of tokens.

        Parameters
        ----------
        n_latents : int or None, default=None
            Number of latents; None means 32 per input.
        **changes : object
            Parameters of the class, in place of the paper's.

        Returns
        -------
        sae : SparseAutoencoder
            Unfitted autoencoder.

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

    @classmethod
    def from_weights(
        cls,
        W_enc: Any,
        b_enc: Any,
        W_dec: Any,
        b_dec: Any,
        *,
        activation: str = "relu",
        l0: int | None = None,
        threshold: Any = None,
        centered: bool = True,
        device: str = "auto",
    ) -> SparseAutoencoder:
        """Make a fitted autoencoder from weights.

        Parameters
        ----------
        W_enc, W_dec : array-like of shape (n_latents, n_inputs) or (n_inputs, n_latents)
            Encoder weight and directions of any norm. Square arrays have one latent per row.
        b_enc : array-like of shape (n_latents,)
            Encoder bias.
        b_dec : array-like of shape (n_inputs,)
            Decoder bias.
        activation : {"relu", "topk", "batchtopk", "jumprelu"}, default="relu"
            Rule for choosing the codes to keep.
        l0 : int or None, default=None
            Codes per row of ``"topk"``, an error with other activations.
        threshold : float, array-like of shape (n_latents,) or None, default=None
            Pre-activation that a code of ``"batchtopk"`` or ``"jumprelu"`` must exceed, an error with other
            activations.
        centered : bool, default=True
            Whether inputs have `b_dec` subtracted before encoding.
        device : str, default="auto"
            Device to encode on.

        Returns
        -------
        sae : SparseAutoencoder
            Fitted autoencoder of the same reconstructions. Its codes are those of the weights times the norms of
            the directions, as with `geofloor.features.load_autoencoder`.

        Raises
        ------
        ValueError
            If shapes do not fit each other, numbers are not finite, or an argument is missing or has no effect.

        Examples
        --------
        >>> import numpy as np
        >>> from geofloor import SparseAutoencoder
        >>> W_enc, W_dec = np.eye(3), 2 * np.eye(3)
        >>> sae = SparseAutoencoder.from_weights(W_enc, np.zeros(3), W_dec, np.zeros(3), activation="topk", l0=1)
        >>> sae.transform([[1.0, 3.0, 2.0]]).toarray()
        array([[0., 6., 0.]], dtype=float32)
        """
        raw = read_arrays(
            W_enc, b_enc, W_dec, b_dec, activation=activation, l0=l0, threshold=threshold, centered=centered
        )
        return cls._from_folded(fold(raw), activation, raw.k, None, device=device)

    @classmethod
    def _from_folded(
        cls, folded: FoldedDictionary, activation: str, l0: int | None, source: dict[str, Any] | None, *, device: str
    ) -> SparseAutoencoder:
        """Make a fitted autoencoder of weights from elsewhere, without a history."""
        resolved = resolve_device(device)
        trained_as = activation if activation in ACTIVATIONS else "topk"
        sae = cls(len(folded.encoder_bias), activation=trained_as, l0="auto" if l0 is None else l0, device=device)
        for name, value in folded._asdict().items():
            setattr(sae, f"{name}_", value)
        sae.activation_, sae.l0_, sae.source_ = activation, l0, source
        sae.l1_coefficient_, sae.scale_, sae.explained_variance_ = 0.0, 1.0, None
        sae.batch_size_ = sae.learning_rate_ = None
        sae.history_, sae.n_steps_, sae.n_tokens_seen_ = [], 0, 0
        sae.n_latents_, sae.n_features_in_ = folded.encoder.shape
        sae._n_features_out = sae.n_latents_
        sae.device_ = str(resolved)
        return sae

    def fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train on activations.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs), or iterable of such batches
            Activations of any floating type, tensors included. An array, memory map or `ActivationStore` is
            read in a new random order each epoch; memory maps and stores are read batch by batch. The batches of an
            iterable, such as a generator or a list of arrays, may have any size and are cut to `batch_size`.
            At most 65,536 rows and 128 MiB of an iterable are read at once, as an array. More rows are read in the
            order given, which should be random, and several epochs then need an iterable that can be read again.
            A resumed `fit` reads an iterable again from its start, and drops the rows already trained on. If
            ``n_epochs=1`` and the iterable has a method ``iter_from(row)``, it reads the first batches and then those
            from the next row on. Each of several processes reads all of `X`.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : SparseAutoencoder
            The fitted autoencoder.

        Raises
        ------
        ValueError
            If data or parameters are out of range, if `checkpoint_path` holds other settings or other data or is
            damaged, if the loss becomes non-finite, or if several processes have different data or parameters.
        MemoryError
            If a batch does not fit into memory.

        Notes
        -----
        Under ``accelerate launch`` or ``torchrun`` all processes must call `fit` with the same data. Each computes its
        share of every batch, and gradients are summed. The result is that of one process up to rounding, and the first
        process scores it, writes the checkpoints and warns. Several processes take dense products on CPUs.
        """
        check_parameters(self)
        processes = join_processes(self.device)
        check_precision(self.precision, processes.device or resolve_device(self.device))
        processes.on_main(check_files, self)
        processes.on_main(check_report_to, self.report_to)
        for _ in self._fit_steps(self._open(X), processes, X):
            pass
        return self

    def _fit_steps(self, rows: ArrayRows | StreamRows, processes: Processes, X: Any = None) -> Generator[None]:
        """Train on rows that `_open` has checked; yield before the first step, and after each."""
        outliers = find_outliers(rows.sample) if processes.is_main else None
        if outliers is not None:
            warn_caller(outliers, OutlierRowsWarning)
        held_out = rows.hold_out(self._n_held_out(rows))
        settings = resolve_settings(self, rows, rows.sample.shape[1])
        device = processes.device or resolve_device(self.device)
        parameters = plain_parameters(self, without=_INCIDENTAL)
        processes.agree(
            parameters=parameters,
            checkpoint_every=None if self.checkpoint_path is None else self.checkpoint_every,
            X=digest_sample(rows) if processes.n > 1 else None,
        )
        checkpoint = state = None
        if self.checkpoint_path is not None:
            data = processes.on_main(lambda: rows.fingerprint)  # reads all rows
            checkpoint = CheckpointFile(self.checkpoint_path, parameters, self.random_state, data)
            state = checkpoint.read(settings, rows.sample, device)
            processes.agree(checkpoints=None if state is None else (state.seed, state.step))
        if state is None:
            seed = processes.everyone(draw_seed(self.random_state))[0]
            state = start_training(rows.sample, settings, seed, device)
            processes.copy_from_main(state.parameters)
        state.processes = processes
        batches = rows.batches(settings.batch_size, settings.n_epochs, state.step, state.seed)
        yield
        reports = Reports(self.report_to if processes.is_main else None, type(self).__name__, parameters)
        attributes_at = partial(self._attributes_at, settings=settings)
        with reports, FitTasks(self, X, processes, attributes_at, reports) as tasks:
            yield from train_steps(
                state,
                settings,
                batches,
                checkpoint_every=self.checkpoint_every,
                write_checkpoint=None if checkpoint is None else partial(processes.on_main, checkpoint.write),
                tasks=tasks,
                verbose=self.verbose if processes.is_main else 0,
            )
            state.processes = ALONE  # for partial_fit
            self._publish(state, settings)
            if checkpoint is not None:
                # After the fitted attributes, so that a full disk leaves them.
                processes.on_main(checkpoint.write, state)
            explained, found = processes.on_main(self._judge, state, settings, rows, held_out)
            self.explained_variance_: float | None = explained
            tasks.end()
        if found and processes.is_main:
            warn_caller(f"The sparse autoencoder is not to be trusted: {'; '.join(found)}.", ConvergenceWarning)

    def partial_fit(self, X: Any, y: Any = None) -> SparseAutoencoder:
        """Train one pass over more activations, in the order given.

        `n_epochs`, `validation_fraction`, checkpoints and several processes are for `fit`.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations. The first call sets the scale and the initial decoder bias. Each ``"auto"`` is chosen as for
            a stream of unknown length.
        y : None
            Ignored; here by convention.

        Returns
        -------
        self : SparseAutoencoder
            The autoencoder after one more pass.

        Raises
        ------
        ValueError
            If data or parameters are out of range, or the loss becomes non-finite.
        """
        check_parameters(self)
        check_precision(self.precision, resolve_device(self.device))
        first = not hasattr(self, "encoder_")
        X = self._checked(X, reset=first)
        settings = resolve_settings(self, None, X.shape[1])
        if first:
            state = start_training(X, settings, draw_seed(self.random_state), resolve_device(self.device))
        else:
            if self.activation_ not in ACTIVATIONS or self.code_scale_ is not None:
                raise ValueError(
                    f"these weights have activation_={self.activation_!r} and choose codes before they are scaled, and "
                    "steps keep neither; call fit to start again."
                )
            if self.activation != self.activation_:
                raise ValueError(
                    f"activation={self.activation!r} is not that of the earlier steps, {self.activation_!r}; set it "
                    "back, or call fit to start again."
                )
            settings = dataclasses.replace(
                settings, n_latents=self.n_latents_, l0=self.l0_, l1_coefficient=self.l1_coefficient_
            )
            check_groups_fit(settings)
            state = self._last_state(settings)
            state.is_stopped = False  # a stop ends `fit`
        train(state, settings, (X[i : i + settings.batch_size] for i in range(0, len(X), settings.batch_size)))
        return self._publish(state, settings)

    def transform(self, X: Any) -> Any:
        """Encode activations.

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs)
            Activations.

        Returns
        -------
        codes : CSR matrix or array of shape (n_tokens, n_latents), float32
            Codes on the scale of the data; stored codes are above zero. It is a sparse array if scikit-learn's
            setting ``sparse_interface`` is ``"sparray"``.

        Raises
        ------
        ValueError
            If values are not finite or the number of inputs differs from the fit's.
        """
        check_is_fitted(self)
        device = resolve_device(self.device)
        rule, parameters = self._rule(device), self._parameters(device)
        pieces = [encode_sparse(rule, parameters, inputs) for inputs in self._pieces(X, device)]
        stacked = sp.vstack(pieces, format="csr") if len(pieces) > 1 else pieces[0]
        array_wanted = get_config().get("sparse_interface", "spmatrix") == "sparray"
        return sp.csr_array(stacked) if array_wanted else sp.csr_matrix(stacked)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Reconstruct activations from codes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_tokens, n_latents)
            Codes.

        Returns
        -------
        activations : ndarray of shape (n_tokens, n_inputs), float32
            Reconstructed activations, on the scale of the data.

        Raises
        ------
        ValueError
            If values are not finite or the number of latents differs from the dictionary's.
        """
        check_is_fitted(self)
        codes = check_array(check_numeric(X, "X"), accept_sparse="csr", dtype=np.float32, input_name="X")
        if codes.shape[1] != self.n_latents_:
            raise ValueError(f"X has {codes.shape[1]} latents, but the dictionary has n_latents_={self.n_latents_}.")
        return codes @ self.decoder_ + self.decoder_bias_

    def score(self, X: Any, y: Any = None) -> float:
        """Compute the explained variance of the reconstruction, 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖².

        Parameters
        ----------
        X : array-like of shape (n_tokens, n_inputs), or iterable of such batches
            Activations, preferably held out. Memory maps, stores and iterables are read batch by batch.
        y : None
            Ignored; here by convention.

        Returns
        -------
        explained_variance : float
            Share of the variance, at most 1, with one mean over all tokens and sums in float64. Equal rows score 1
            if they are reconstructed and 0 otherwise.

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
            # Squares about the decoder bias lose few digits, because the bias is near the mean.
            centered = (inputs - parameters.decoder_bias).double()
            squares += float(centered.square().sum())
            total = total + centered.sum(dim=0).cpu().numpy()
            n_rows += len(inputs)
        variance = squares - float(total @ total) / n_rows
        if variance <= 1e-12 * squares:
            return 1.0 if error <= 1e-12 * squares else 0.0
        return 1.0 - error / variance

    def save(self, path: str | os.PathLike[str], *, format: str = "geofloor") -> None:  # noqa: A002
        """Write the fitted autoencoder as safetensors and JSON.

        Parameters
        ----------
        path : str or path
            File to write, atomically; for ``format="saelens"`` a folder, made if needed. Neither holds optimizer state:
            `partial_fit` after `load` starts with a new optimizer. To resume a `fit`, use `checkpoint_path`.
        format : {"geofloor", "saelens"}, default="geofloor"
            ``"geofloor"`` is one file of weights, settings and history, for `load`. ``"saelens"`` is what SAELens and
            the tools around it read, ``cfg.json`` and ``sae_weights.safetensors``. It has the same codes there.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        ValueError
            If SAELens has no form for the activation.
        """
        check_is_fitted(self)
        check_choice("format", format, ("geofloor", "saelens"))
        if format == "saelens":
            write_saelens(path, self)
            return
        weights, fitted = ({name: getattr(self, name) for name in names} for names in (_WEIGHTS, FITTED))
        write_autoencoder(path, weights, plain_parameters(self, without=NOT_SAVED), fitted)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> SparseAutoencoder:
        """Read an autoencoder written by `save`, without running code from the file.

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
            If the file is truncated, altered or of another kind, or its content is no autoencoder.
        """
        weights, parameters, fitted = read_autoencoder(path)
        with refusing(path):
            sae = cls(**saved_parameters(parameters, cls), device=device)
            check_parameters(sae)
        for name, value in (weights | fitted).items():
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
        return steps_done(checkpoint_path, kind=CHECKPOINT)

    def _open(self, X: Any) -> ArrayRows | StreamRows:
        """Wrap the data; of memory maps, stores and streams check only the first rows."""
        if is_stream(X):
            stream = open_rows(X, stream=True)
            validate_data(self, stream.sample[:1], dtype=np.float32)
            return stream
        if _is_on_disk(X):
            self._checked(np.asarray(X[:1]), reset=True)
            return open_rows(X, stream=False)
        return open_rows(self._checked(X, reset=True), stream=False)

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        """Check activations and return them as float32, (n_rows, n_inputs)."""
        X = check_numeric(X, "X")
        shape = tuple(getattr(X, "shape", ()))
        if len(shape) > 2:
            raise ValueError(f"X has shape {shape}; give one row per token: X.reshape(-1, {shape[-1:][0]}).")
        return validate_data(self, X, dtype=np.float32, order="C", reset=reset)

    def _n_held_out(self, rows: ArrayRows | StreamRows) -> int:
        """Count the rows to hold out."""
        n_rows = len(rows.sample) if rows.n_rows is None else rows.n_rows
        return min(int(self.validation_fraction * n_rows), _MAX_HELD_OUT, len(rows.sample) // 2)

    def _judge(
        self, state: TrainingState, settings: Settings, rows: ArrayRows | StreamRows, held_out: np.ndarray
    ) -> tuple[float | None, list[str]]:
        """Score held-out rows and noise of the same covariance; return the score and the reasons to doubt the fit."""
        explained: float | None = None
        l0 = noise = None
        if len(held_out) > 1:
            explained = self.score(held_out)
            if settings.l0_per_row is None:
                l0 = self.transform(held_out).nnz / len(held_out)
            noise = self.score(noise_like(rows.sample, len(held_out), step_generator(state.seed, state.step)))
        n_rows = None if rows.n_rows is None else rows.n_rows + len(held_out)
        return explained, find_doubts(
            Outcome(state.history, settings, self.n_features_in_, n_rows, explained, l0, noise)
        )

    def _last_state(self, settings: Settings) -> TrainingState:
        """Return the state after the last step or, after `load`, the weights with a new optimizer."""
        state = getattr(self, "_state", None)
        if isinstance(state, TrainingState):
            return state
        device = resolve_device(self.device)
        if state is not None:  # from a pickle
            tensors, values = state
            return unpack_state(tensors, values, settings, device)
        parameters = self._parameters(device)
        parameters.encoder_bias.mul_(self.scale_)
        parameters.decoder_bias.mul_(self.scale_)
        threshold = self._threshold(device)
        state = wrap_weights(
            parameters,
            settings,
            scale=self.scale_,
            seed=draw_seed(self.random_state),
            threshold=None if threshold is None else threshold.mul_(self.scale_),
            l1_coefficient=torch.tensor(self.l1_coefficient_, device=device) if settings.is_steered else None,
        )
        state.step, state.n_tokens, state.history = self.n_steps_, self.n_tokens_seen_, list(self.history_)
        return state

    def _publish(self, state: TrainingState, settings: Settings) -> SparseAutoencoder:
        """Set the fitted attributes, with the scale of training folded into the biases."""
        parameters = state.parameters
        self.encoder_ = parameters.encoder_weight.cpu().numpy().copy()
        self.decoder_ = parameters.decoder_weight.cpu().numpy().copy()
        self.encoder_bias_ = (parameters.encoder_bias / state.scale).cpu().numpy().copy()
        self.decoder_bias_ = (parameters.decoder_bias / state.scale).cpu().numpy().copy()
        self.threshold_ = None if state.threshold is None else (state.threshold / state.scale).cpu().numpy().copy()
        self.code_scale_: np.ndarray | None = None
        self.source_: dict[str, Any] | None = None
        self.activation_ = settings.activation
        self.n_latents_ = len(self.encoder_bias_)
        self._n_features_out = self.n_latents_
        self.l0_, self.l1_coefficient_ = settings.l0, settings.l1_coefficient
        if state.l1_coefficient is not None:
            self.l1_coefficient_ = float(state.l1_coefficient)
        self.batch_size_: int | None = settings.batch_size
        self.learning_rate_: float | None = settings.learning_rate
        self.explained_variance_ = None
        self.scale_ = state.scale
        self.history_ = list(state.history)
        self.n_steps_ = state.step
        self.n_tokens_seen_ = state.n_tokens
        self.device_ = str(state.device)
        self._state: TrainingState | tuple[dict[str, torch.Tensor], dict[str, Any]] = state
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A pickle holds the training state as tensors on the CPU, whatever its device.
        state = super().__getstate__().copy()
        if isinstance(state.get("_state"), TrainingState):
            state["_state"] = pack_state(state["_state"])
        return state

    def _attributes_at(self, state: TrainingState, settings: Settings) -> dict[str, Any]:
        """Return the fitted attributes at a point of training, without its state."""
        return attributes_set(self, lambda shell: shell._publish(state, settings), without=("_state",))

    def _parameters(self, device: torch.device) -> Parameters:
        """Copy the weights, on the scale of the data, to a device."""
        arrays = (self.encoder_, self.encoder_bias_, self.decoder_, self.decoder_bias_)
        return Parameters(*(torch.tensor(array, device=device) for array in arrays))

    def _threshold(self, device: torch.device) -> torch.Tensor | None:
        """Copy the thresholds, on the scale of the data, to a device."""
        return None if self.threshold_ is None else torch.tensor(self.threshold_, device=device)

    def _rule(self, device: torch.device) -> Rule:
        """Copy the rule for choosing codes to a device."""
        scale = None if self.code_scale_ is None else torch.tensor(self.code_scale_, device=device)
        return Rule(self.activation_, self.l0_, self._threshold(device), scale)

    def _encoded(self, X: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield rows and their dense codes, in pieces of at most `_CODES_AT_A_TIME` codes."""
        check_is_fitted(self)
        device = resolve_device(self.device)
        rule, parameters = self._rule(device), self._parameters(device)
        for inputs in self._pieces(X, device):
            yield inputs, encode_by(rule, parameters, inputs)

    def _pieces(self, X: Any, device: torch.device) -> Iterator[torch.Tensor]:
        """Yield rows on a device, in pieces of at most `_CODES_AT_A_TIME` codes."""
        if is_stream(X):
            is_empty = True
            for batch in X:
                is_empty = False
                yield from self._pieces(checked_batch(batch), device)
            if is_empty:
                raise ValueError("X gave no batch; give an iterable of at least one, and a generator only once.")
            return
        piece = max(_CODES_AT_A_TIME // self.n_latents_, 1)
        on_disk = _is_on_disk(X)
        if not on_disk:
            X = self._checked(X, reset=False)
        for start in range(0, len(X), piece):
            rows = X[start : start + piece]
            yield to_device(self._checked(np.asarray(rows), reset=False) if on_disk else rows, device)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _is_on_disk(X: Any) -> bool:
    """Tell whether data are a memory map or store, to be read piece by piece."""
    return isinstance(X, np.memmap) or hasattr(X, "iter_batches")
