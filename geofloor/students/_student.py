"""A student of a language model as an estimator."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.schema import refusing
from geofloor._training.callbacks import CallbackSupportMixin, FitTasks, attributes_set
from geofloor._training.checkpoints import steps_done
from geofloor._training.devices import memory_advice
from geofloor._training.processes import join_processes
from geofloor._training.reports import Reports, check_report_to
from geofloor._training.settings import NOT_SAVED, check_files, plain_parameters, saved_parameters
from geofloor._validation import check_choice, check_number, check_path
from geofloor.language_models import ActivationExtractor
from geofloor.language_models._divergence import chunks_of
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import check_model_kwargs, exact_device, load_language_model, on_device
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._sequence_means import mean_and_error
from geofloor.language_models._token_rows import TokenRows
from geofloor.students._architecture import check_named_student, check_student, default_init, model_width
from geofloor.students._checkpoints import CHECKPOINT
from geofloor.students._engine import Distillation
from geofloor.students._export import ExportMixin
from geofloor.students._families import check_positive_width
from geofloor.students._files import build_student, read_student, write_student
from geofloor.students._progress import has_converged, remaining_fall, warn_of_training
from geofloor.students._run import Run
from geofloor.students._settings import AUTO, PAPER, DistillationSettings, StudentSpec
from geofloor.students._teacher import Teacher
from geofloor.students._text import split_text

# Parameters that do not change the result of training, so they may differ when it resumes.
_NOT_RECORDED = frozenset(
    {"teacher", "model_kwargs", "device", "verbose", "report_to", "checkpoint_path", "checkpoint_every"}
    | {"random_state", "layer", "pooling", "tol"}
)


class DistilledStudent(
    ShortReprMixin,
    SharedParametersMixin,
    ExportMixin,
    PortablePickleMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Student of a given width, distilled from a language model to observe its loss floor.

    Training minimizes the forward KL divergence between the next-token distributions of teacher and student at a
    temperature, averaged over all positions. The optimizer is Muon or AdamW with linear warm-up and cosine decay. The
    defaults did best on small language models; `paper` gives the paper's settings.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        A causal language model of ``transformers``, its name on the hub or its folder, or a module that maps token ids
        to logits (with a function for its students in ``make_student.register``). An object is never changed: if it is
        not on the device, training uses a copy.
    width : int
        Dimensions d of the student's residual stream, at most the teacher's. All other sizes follow from the teacher by
        the rule of `student_config`.
    n_heads : int or None, default=None
        Attention heads of the student. They must divide `width`. By default the rule of `student_config` chooses them.
    head_dim : int or None, default=None
        Dimensions of each head, for teachers whose configuration has this field (Llama, Mistral, Qwen and others). By
        default the rule of `student_config` chooses them. A principal start from a teacher that rotates whole heads
        needs the teacher's own size: heads of another size rotate at other frequencies.
    temperature : float, default=2.0
        Temperature T of both distributions.
    n_steps : int or "auto", default="auto"
        Training steps. ``"auto"`` is one pass over the text, but at least 600 and at most 4,000 steps. Short texts are
        then passed over several times, and only a part of a long text is used.
    batch_size : int or "auto", default="auto"
        Sequences per step. ``"auto"`` takes about 2,048 tokens. It takes up to 16,384 tokens if 4,000 steps would not
        see all of the text otherwise, and never more than an eighth of the sequences.
    learning_rate : float or "auto", default="auto"
        Learning rate after warm-up. It falls to zero along a cosine. ``"auto"`` is 0.01 for teachers of widths up to
        128, as measured with Muon, and beyond falls with the inverse of the teacher's width. At 0.01 training destroys
        the principal starts of SmolLM2-135M (width 576).
    weight_decay : float, default=0.01
        Weight decay of all parameters.
    warmup_steps : int or "auto", default="auto"
        Steps over which the learning rate rises linearly, fewer than `n_steps`. ``"auto"`` is a tenth of `n_steps`.
    optimizer : {"muon", "adamw"}, default="muon"
        ``"muon"`` [2]_ orthogonalizes the updates of the blocks' matrices and scales them to the size of AdamW's at the
        same `learning_rate` [3]_; AdamW updates embeddings, biases and gains. ``"adamw"`` is the paper's choice.
    clip_norm : float or None, default=1.0
        Largest norm of the gradient of all parameters together; None does not clip.
    gradient_accumulation : int, default=1
        Micro-batches per batch, or per process's share of a batch. More of them save memory; the gradient stays that of
        the batch.
    precision : {None, "bf16"}, default=None
        ``"bf16"`` runs teacher and student under autocast to bfloat16. Weights, softmaxes and losses stay float32.
    init : {"auto", "principal", "random"}, default="auto"
        Initial weights: see `make_student`. ``"auto"`` is ``"principal"`` if the teacher's family supports it, else
        ``"random"``.
    cross_entropy_weight : float, default=0.0
        Weight in the loss of the cross-entropy of the text's next tokens, in nats per token.
    hidden_weight : float, default=0.0
        Weight in the loss of the squared error between the teacher's last hidden states and a learned linear map of the
        student's, as a share of the variance of the teacher's.
    validation_fraction : float, default=0.05
        Share of the sequences, at the end, that is held out for evaluation if there are no `eval_tokens`.
    eval_sequences : int, default=256
        Largest number of held-out sequences to evaluate; the first ones are used.
    eval_every : int or "auto", default="auto"
        Steps between evaluations. ``"auto"`` is a twentieth of `n_steps`.
    tol : float, default=0.05
        Largest `remaining_fall_` at which `converged_` is true.
    pad_token_id : int or None, default=None
        Token that pads the ends of sequences. Padding is excluded from all losses.
    layer : int, default=-1
        Block whose output `transform` returns, from 0; negative indices count from the last.
    pooling : {"mean", "last", None}, default="mean"
        How `transform` pools the positions of a sequence: see `ActivationExtractor`.
    data_seed : int, default=0
        Seed for the order of the sequences. It is separate from `random_state` so that students with different seeds
        can be trained in one pass.
    model_kwargs : dict or None, default=None
        Additional arguments for ``from_pretrained`` if the teacher is given by name, such as
        ``{"revision": "step1000"}`` or ``{"dtype": "bfloat16"}``. By default the teacher is loaded in float32.
    checkpoint_path : str, path or None, default=None
        File for the state of `fit`. If it exists and belongs to the same settings, teacher and data, `fit` resumes from
        it and reaches the result of an uninterrupted run.
    checkpoint_every : int, default=500
        Steps between checkpoints, if there is a `checkpoint_path`.
    random_state : int, RandomState or None, default=None
        Seed for the student's initial weights.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``. ``"auto"`` keeps a teacher given as an
        object on its accelerator, and is the best available device otherwise. With several processes, each uses its
        own.
    verbose : int, default=0
        Whether to show a progress bar.
    report_to : str, list of str or None, default=None
        Trackers that get the row of `history_` at each evaluation, such as ``"tensorboard"``, ``"wandb"`` or
        ``"trackio"``: those of `transformers.TrainingArguments`, with their environment variables. TensorBoard's files
        go to ``runs``. They need the tracker's own package and ``geofloor[accelerate]``.

    Attributes
    ----------
    floor_ : float
        Loss at the end of training, in nats per token: the KL on held-out text at the temperature, without the factor
        T², averaged over the evaluations in the last tenth of the steps. More than `n_steps_` steps can lower it: see
        `remaining_fall_`.
    floor_error_ : float
        Standard error of `floor_` over held-out sequences; NaN for a single sequence.
    zero_width_loss_ : float
        Loss on the same text of the best single distribution for all positions, in nats per token: see
        `zero_width_kl`.
    remaining_fall_ : float
        Relative fall of the KL on held-out text from a quarter to half of the steps. Twice the steps are not expected
        to lower `floor_` by a larger share, and mostly lower it by less. NaN if `eval_every` is too large to tell.
    converged_ : bool
        Whether `remaining_fall_` is at most `tol`, or `floor_` at most a thousandth of `zero_width_loss_`. Always false
        after fewer than 100 steps, if `floor_` is not below `zero_width_loss_`, and if the loss rose again. True means
        that more steps at the same learning rate are not expected to lower `floor_` by a larger share. False proves
        nothing: wide students seldom reach True.
    history_ : list of dict
        One row per evaluation, the first before training: ``step``, ``train_kl`` (mean since the previous evaluation;
        None in the first row), ``eval_kl`` and ``learning_rate``. KLs are in nats per token.
    n_parameters_ : int
        Number of the student's parameters.
    learning_rate_ : float
        Learning rate that `fit` used.
    n_steps_, batch_size_, warmup_steps_, eval_every_ : int
        Settings that `fit` used. If a callback stopped `fit`, `n_steps_` is the number of steps taken.
    sequence_length_ : int or None
        Tokens per sequence of the training text, so that a step has ``batch_size_ * sequence_length_`` tokens. None
        after `load` of a file that does not tell.
    init_ : {"principal", "random"}
        How the student started.
    model_ : torch.nn.Module
        The student, on the device of its training.
    device_ : str
        Device of `model_`.

    See Also
    --------
    distill_widths : Trains several students in one pass.
    AffineCalibrator : Relates floors to predictions.
    ToyModel : Distills toy models, by ``fit(X, teacher=toy)``.

    Notes
    -----
    With logits t of the teacher and s of the student, the loss is

    .. math:: T^2 \, \frac{1}{N} \sum_{n=1}^N \mathrm{KL}\bigl(\mathrm{softmax}(t_n / T) \,\Vert\,
              \mathrm{softmax}(s_n / T)\bigr).

    Reported values leave out the factor :math:`T^2`. The paper's raw figures [1]_ are sums over 512 positions, times
    :math:`T^2`: 2,048 times the values here. With either optimizer a factor on the loss only changes the relative size
    of the optimizer's epsilon. Weights of other losses count relative to :math:`T^2`.

    *Convergence.* The learning rate falls to zero, so every learning curve is flat at its end. The fall from a quarter
    to half of the steps happens before most of that decay. It was compared with the effect of twice the steps in 74
    pairs of runs (``benchmarks/results``: three teachers of widths 64 to 128, both optimizers and starts). Twice the
    steps lowered the floor by 0.10 to 1.00 times that fall, 0.41 times in the median. A
    `sklearn.exceptions.ConvergenceWarning` names students with fewer than 100 steps, with a floor no better than width
    0, with a loss on held-out text that rose again, or with a `remaining_fall_` above 0.5. At such a fall twice the
    steps lowered these floors by 22 to 55%.

    Dropout is off. On a CPU the same seeds, data and number of threads give the same bits.

    *Callbacks.* With a scikit-learn that has `sklearn.callback`, callbacks given to `set_callbacks` see one task per
    evaluation, with its row of `history_` as ``metadata``. If `on_fit_task_end` of one returns True, training stops
    there, after the first step at the earliest. `floor_` is then the mean over the evaluations in the last tenth of the
    planned steps, or the last evaluation if there are none yet. A checkpoint records the stop.

    *Several processes.* Under ``accelerate launch`` or ``torchrun`` (with ``geofloor[accelerate]``) each process
    computes its share of every batch and of every evaluation. Gradients are summed before they are clipped, so batches
    and results are those of one process, up to the order of sums. Every process must call `fit` with the same
    arguments, and all of them end with the student. The first process writes checkpoints. Other methods run in the
    calling process only. A search with ``n_jobs`` starts processes of its own, so its workers refuse to fit under a
    launcher.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037, Appendix E.
    .. [2] Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
    .. [3] Liu et al. (2025), "Muon is Scalable for LLM Training", arXiv:2502.16982, Section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor import DistilledStudent
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    ...     initializer_range=0.2,
    ... )
    >>> teacher = GPTNeoXForCausalLM(config)
    >>> tokens = np.random.default_rng(0).integers(32, size=(512, 12))
    >>> student = DistilledStudent(teacher, 8, n_steps=120, random_state=0).fit(tokens)
    >>> student.floor_ < student.history_[0]["eval_kl"], student.floor_ < student.zero_width_loss_
    (True, True)
    >>> student.init_, student.batch_size_, student.warmup_steps_
    ('principal', 60, 12)
    >>> student.predict(tokens[:3]).shape, student.transform(tokens[:3]).shape
    ((3, 12), (3, 8))
    """

    _shared_parameters = ("teacher",)

    def __init__(
        self,
        teacher: Any,
        width: int,
        *,
        n_heads: int | None = None,
        head_dim: int | None = None,
        temperature: float = 2.0,
        n_steps: int | str = AUTO,
        batch_size: int | str = AUTO,
        learning_rate: float | str = AUTO,
        weight_decay: float = 0.01,
        warmup_steps: int | str = AUTO,
        optimizer: str = "muon",
        clip_norm: float | None = 1.0,
        gradient_accumulation: int = 1,
        precision: str | None = None,
        init: str = AUTO,
        cross_entropy_weight: float = 0.0,
        hidden_weight: float = 0.0,
        validation_fraction: float = 0.05,
        eval_sequences: int = 256,
        eval_every: int | str = AUTO,
        tol: float = 0.05,
        pad_token_id: int | None = None,
        layer: int = -1,
        pooling: str | None = "mean",
        data_seed: int = 0,
        model_kwargs: dict[str, Any] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
        report_to: str | Sequence[str] | None = None,
    ) -> None:
        self.teacher = teacher
        self.width = width
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.temperature = temperature
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.gradient_accumulation = gradient_accumulation
        self.precision = precision
        self.init = init
        self.cross_entropy_weight = cross_entropy_weight
        self.hidden_weight = hidden_weight
        self.validation_fraction = validation_fraction
        self.eval_sequences = eval_sequences
        self.eval_every = eval_every
        self.tol = tol
        self.pad_token_id = pad_token_id
        self.layer = layer
        self.pooling = pooling
        self.data_seed = data_seed
        self.model_kwargs = model_kwargs
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.report_to = report_to

    @classmethod
    def paper(cls, teacher: Any, width: int, **changes: Any) -> DistilledStudent:
        """Make a student with the paper's settings [1]_: AdamW for 30,000 steps, from random weights.

        Parameters
        ----------
        teacher : PreTrainedModel, str, path-like or torch.nn.Module
            As in the constructor.
        width : int
            As in the constructor.
        **changes
            Other parameters of the constructor, which take precedence.

        Returns
        -------
        student : DistilledStudent
            Not fitted.

        References
        ----------
        .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037, Appendix E.

        Examples
        --------
        >>> from geofloor import DistilledStudent
        >>> student = DistilledStudent.paper("EleutherAI/pythia-410m", 256, batch_size=16)
        >>> student.n_steps, student.batch_size, student.optimizer, student.init
        (30000, 16, 'adamw', 'random')
        """
        return cls(teacher, width, **{**PAPER, **changes})

    def fit(self, tokens: Any, y: Any = None, *, eval_tokens: Any = None) -> DistilledStudent:
        """Train the student.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids. A dataset has them in a column ``input_ids`` with rows of one length. A dataset or a memory map,
            such as `geofloor.language_models.token_blocks` writes, is read batch by batch. Each epoch visits the
            sequences in a new order.
        y : None
            Ignored; here by convention.
        eval_tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset, default=None
            Token ids to evaluate on. By default the last sequences of `tokens` are held out from training.

        Returns
        -------
        self : DistilledStudent
            The fitted student.

        Raises
        ------
        ValueError
            If data, teacher or parameters do not fit each other, if `checkpoint_path` belongs to other settings, data
            or teacher or is damaged, or if the teacher's logits or the loss become non-finite.
        """
        fit_together([self], tokens, eval_tokens)
        return self

    def predict(self, tokens: Any) -> np.ndarray:
        """Predict the most likely next token after each position.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids.

        Returns
        -------
        tokens : ndarray of shape (n_sequences, seq_len), int64
            Ids of the most likely next tokens.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary.
        """
        check_is_fitted(self)
        return self._apply_to_logits(tokens, lambda logits: logits.argmax(dim=1))

    def predict_log_proba(self, tokens: Any) -> np.ndarray:
        """Predict the log-probabilities of the next token after each position, at temperature 1.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids.

        Returns
        -------
        log_probabilities : ndarray of shape (n_sequences, seq_len, n_vocabulary), float32
            Natural logarithms.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary.
        """
        check_is_fitted(self)
        return self._apply_to_logits(tokens, lambda logits: torch.log_softmax(logits, dim=1, dtype=torch.float32))

    def transform(self, tokens: Any) -> np.ndarray:
        """Return the student's hidden states after block `layer`, pooled by `pooling`.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids.

        Returns
        -------
        hidden : ndarray of shape (n_sequences, width), or (n_tokens, width) without pooling, float32
            As `ActivationExtractor` gives them: without the first position of each sequence.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or the layer does not exist.
        """
        check_is_fitted(self)
        layer = check_number("layer", self.layer, whole=True)
        data = self._check_tokens(tokens)
        batch = data.take(np.arange(len(data)))
        rows = list(batch.ids)
        if batch.mask is not None:
            rows = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        extractor = ActivationExtractor(
            self.model_, layer, pooling=self.pooling, max_length=None, batch_size=self._inference_batch_size()
        )
        return np.asarray(extractor.transform(rows))

    def score(self, tokens: Any, y: Any = None) -> float:
        """Return the negative KL divergence from the teacher; larger is better.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids, preferably held out.
        y : None
            Ignored; here by convention.

        Returns
        -------
        score : float
            −KL at the temperature, in nats per token.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or there is no teacher.
        """
        check_is_fitted(self)
        settings, batch_size = self._settings(), self._inference_batch_size()
        device, module = self._load_teacher()
        teacher = Teacher(module, device, settings)
        data = teacher.model.token_rows(tokens, "tokens", settings.pad_token_id)
        student = LanguageModel(on_device(self.model_, device), "the student")
        with evaluating(module), evaluating(student.module), memory_advice(f"lower batch_size={batch_size}"):
            sums, counts = teacher.sequence_kls(
                [student],
                data,
                np.arange(len(data)),
                batch_size=max(batch_size // settings.gradient_accumulation, 1),
            )
        return -float(sums.sum() / counts.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted student to a safetensors file, with its settings as JSON in the header.

        Parameters
        ----------
        path : str or path
            File to write, atomically. It holds the weights, their configuration and the history, but neither the
            teacher nor the optimizer's state: use `checkpoint_path` to resume `fit`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the student is not fitted.
        ValueError
            If ``transformers`` does not ship the class of the model, so that a file could not tell how to build it.
        """
        check_is_fitted(self)
        write_student(
            path,
            self.model_,
            self.width,
            parameters=plain_parameters(self, without=NOT_SAVED),
            teacher=os.fspath(self.teacher) if self._is_given_by_name() else None,
            attributes=vars(self),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, teacher: Any = None, device: str = "auto") -> DistilledStudent:
        """Read a saved student without running code of the file.

        Parameters
        ----------
        path : str or path
            The file.
        teacher : PreTrainedModel, str, path-like or torch.nn.Module, default=None
            The teacher, needed by `score` and `fit`. A teacher named in the file is shown in errors but never loaded.
        device : str, default="auto"
            Device to predict on.

        Returns
        -------
        student : DistilledStudent
            The fitted student.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If the file is truncated or altered, or holds no student.

        Notes
        -----
        Files do not hold the parameters `teacher`, `model_kwargs`, `checkpoint_path` and `device`.
        """
        content = read_student(path)
        with refusing(path):
            student = cls(teacher, **saved_parameters(content.parameters, cls), device=device)
            student._settings()
            student._set_model(build_student(content, student.width).to(exact_device(device)))
            for name, value in content.fitted.items():
                setattr(student, name, value)
            sample = np.full((1, 2), 1 if student.pad_token_id == 0 else 0)
            if np.isnan(student.predict_log_proba(sample)).any() or not np.isfinite(student.transform(sample)).all():
                raise ValueError("its output is not finite")
        student._saved_teacher = content.teacher
        return student

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
            If the file is truncated, altered or no checkpoint of a student.

        Notes
        -----
        The call reads the whole file to verify its checksum. It may be called while `fit` runs, because `fit`
        replaces the file atomically.

        Examples
        --------
        >>> from geofloor import DistilledStudent
        >>> DistilledStudent.steps_done("no-checkpoint-yet.safetensors")
        0
        """
        return steps_done(checkpoint_path, kind=CHECKPOINT)

    # Settings

    def _settings(self) -> DistillationSettings:
        return DistillationSettings.from_parameters(self.get_params(deep=False))

    def _spec(self) -> StudentSpec:
        """Check and collect the parameters in which students of a pass differ."""
        width = check_positive_width("width", self.width)
        # Functions registered with make_student need have neither argument.
        heads = {name: getattr(self, name) for name in ("n_heads", "head_dim") if getattr(self, name) is not None}
        heads = {name: check_number(name, value, 1, whole=True) for name, value in heads.items()}
        check_random_state(self.random_state)
        path = None if self.checkpoint_path is None else check_path("checkpoint_path", self.checkpoint_path)
        return StudentSpec(width, heads, self.random_state, path, plain_parameters(self, without=_NOT_RECORDED))

    def _inference_batch_size(self) -> int:
        if isinstance(self.batch_size, str):
            return self.batch_size_
        return check_number("batch_size", self.batch_size, 1, whole=True)

    # The teacher

    def _is_given_by_name(self) -> bool:
        return isinstance(self.teacher, str | os.PathLike)

    def _load_teacher(self, device: torch.device | None = None) -> tuple[torch.device, torch.nn.Module]:
        """Load the teacher onto a device, by default the student's. A teacher given by name is loaded once."""
        if self.teacher is None and getattr(self, "_saved_teacher", None) is not None:
            raise ValueError(
                f"The student's file names the teacher {self._saved_teacher!r:.200}, which is not loaded from a file's "
                "word alone; if you trust it, give DistilledStudent.load(path, teacher=...) or set_params(teacher=...)."
            )
        if not self._is_given_by_name():
            return load_language_model(self.teacher, self.model_kwargs, device or self.device)
        source = (self.teacher, repr(self.model_kwargs), device or exact_device(self.device))
        loaded = getattr(self, "_loaded", None)
        if loaded is None or loaded[0] != source:
            loaded = (source, load_language_model(self.teacher, self.model_kwargs, device or self.device))
            self._loaded: Any = loaded
        return loaded[1]

    # Results

    def _publish(self, run: Run, counts: np.ndarray, zero_width_loss: float) -> None:
        """Set the fitted attributes."""
        self._publish_run(run, run.model.module)
        self.floor_, self.floor_error_ = mean_and_error(run.final_kls(), counts)
        self.zero_width_loss_ = zero_width_loss
        self.remaining_fall_ = remaining_fall(run.history, run.step)
        self.converged_ = has_converged(self, run.settings.tol)

    def _publish_run(self, run: Run, model: torch.nn.Module) -> None:
        """Set the fitted attributes that need no more than a run and its model."""
        settings = run.settings
        self._set_model(model.requires_grad_(False))
        self.history_ = list(run.history)
        self.init_, self.n_steps_, self.batch_size_ = settings.init, run.step, settings.batch_size
        self.learning_rate_ = settings.learning_rate
        self.warmup_steps_, self.eval_every_ = settings.warmup_steps, settings.eval_every

    def _attributes_at(self, run: Run) -> dict[str, Any]:
        """Return the fitted attributes of this student at a point of training, with a copy of the model."""
        return attributes_set(self, lambda shell: shell._publish_run(run, copy.deepcopy(run.model.module)))

    def _set_model(self, model: torch.nn.Module) -> None:
        self.model_: torch.nn.Module = model.eval()
        student = LanguageModel(model, "the student")
        self.n_parameters_ = sum(parameter.numel() for parameter in model.parameters())
        self.device_ = str(student.device)
        self._n_tokens, self._max_length = student.n_tokens, student.max_length
        self._n_features_out = int(self.width)

    # Inference

    def _check_tokens(self, tokens: Any) -> TokenRows:
        return TokenRows(tokens, "tokens", self._n_tokens, self._max_length, self.pad_token_id)

    @torch.no_grad()
    def _apply_to_logits(self, tokens: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Apply a function to the logits (n_positions, n_vocabulary), chunk by chunk."""
        student = LanguageModel(self.model_, "the student")
        data = self._check_tokens(tokens)
        pieces = []
        size = self._inference_batch_size()
        with memory_advice(f"lower batch_size={size}"):
            for start in range(0, len(data), size):
                ids = torch.from_numpy(data.take(np.arange(start, min(start + size, len(data)))).ids)
                logits = student.logits(ids.to(student.device))
                found = torch.cat([function(logits.compute(chunk, 1.0)) for chunk in chunks_of(logits)])
                pieces.append(found.view(*ids.shape, *found.shape[1:]).cpu().numpy())
        return np.concatenate(pieces)

    # Hooks of scikit-learn and of pickle

    def _not_pickled(self) -> Collection[str]:
        return ("_loaded",)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


def fit_together(students: Sequence[DistilledStudent], tokens: Any, eval_tokens: Any) -> None:
    """Fit students of several widths, seeds and numbers of steps in one pass over the text.

    Parameters
    ----------
    students : sequence of DistilledStudent
        Students to fit, in place. Their other parameters are equal.
    tokens, eval_tokens : int array-like of shape (n_sequences, seq_len), datasets.Dataset or None
        As in `DistilledStudent.fit`.

    Raises
    ------
    ValueError
        As `DistilledStudent.fit`.
    """
    first = students[0]
    settings = first._settings()
    check_choice("pooling", first.pooling, (None, "mean", "last"))
    specs = [student._spec() for student in students]
    processes = join_processes(first.device)
    for student in students:
        processes.on_main(check_files, student)
    processes.on_main(check_report_to, first.report_to)
    if first._is_given_by_name():
        check_model_kwargs(first.model_kwargs, by_name=True)
        for spec in specs:
            check_named_student(first.teacher, spec.width, model_kwargs=first.model_kwargs, **spec.heads)
    device, module = first._load_teacher(processes.device)
    if first._is_given_by_name():
        for student in students[1:]:
            student._loaded = first._loaded  # so that score need not load the teacher again
    teacher = Teacher(module, device, settings, processes)
    for spec in specs:
        check_student(module, spec.width, init=settings.init or AUTO, **spec.heads)
    teacher.model.check_layer(first.layer)
    text = split_text(teacher.model, tokens, eval_tokens, settings)
    known: dict[str, Any] = {
        "n_sequences": text.n_train,
        "length": text.train.length,
        "principal": default_init(module) == "principal",
        "teacher_width": model_width(module),
    }
    each = [student._settings().resolve(**known) for student in students]
    resolved = each[0]
    advice = f"lower batch_size={resolved.batch_size} or raise gradient_accumulation={resolved.gradient_accumulation}"
    with ExitStack() as stack:
        settings_shown = plain_parameters(first, without=NOT_SAVED)
        reports = Reports(first.report_to if processes.is_main else None, type(first).__name__, settings_shown)
        stack.enter_context(reports)
        tasks = [
            stack.enter_context(FitTasks(student, tokens, processes, student._attributes_at, reports, label))
            for student, label in zip(students, _labels(students, each), strict=True)
        ]
        distillation = Distillation(teacher, each, text, specs, processes, tasks)
        with evaluating(module), memory_advice(advice):
            runs = distillation.train()
            zero_width_loss = distillation.zero_width_loss()
        counts = text.count_positions()
        for student, run in zip(students, runs, strict=True):
            student._publish(run, counts, zero_width_loss)
            student.sequence_length_ = text.train.length
            run.tasks.end()
    if processes.is_main:
        longest = max(run.settings.n_steps for run in runs)
        # Shorter budgets are meant to be short.
        warn_of_training([student for student in students if student.n_steps_ == longest])
    # Last, so that the students are fitted even if the disk is full.
    distillation.save_checkpoints(runs)


def _labels(students: Sequence[DistilledStudent], settings: Sequence[Any]) -> list[str]:
    """Name each of several students by what tells it from the others; a single one has no name."""
    if len(students) == 1:
        return [""]
    parts: dict[str, list[Any]] = {
        "width": [student.width for student in students],
        "seed": [student.random_state for student in students],
        "steps": [each.n_steps for each in settings],
    }
    differing = {name: values for name, values in parts.items() if len(set(map(str, values))) > 1}
    return ["_".join(f"{name}_{values[place]}" for name, values in differing.items()) for place in range(len(students))]
