"""Distilling students of given widths: how low they really get, in nats a token."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedModel

from geofloor._estimators import SharedParametersMixin, ShortReprMixin
from geofloor._files.schema import choice, fields, flag, mapping, number, optional, refusing, text
from geofloor._training.checkpoints import read_tensors, steps_done, write_tensors
from geofloor._training.devices import memory_advice
from geofloor._training.processes import ALONE, Processes, join_processes
from geofloor._training.settings import NOT_SAVED, check_files, plain_parameters, saved_parameters
from geofloor._validation import check_choice, check_number, check_object, check_path, shown
from geofloor.language_models import ActivationExtractor
from geofloor.language_models._divergence import chunks_of
from geofloor.language_models._hooks import evaluating
from geofloor.language_models._loading import exact_device, load_language_model, on_device
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._pickles import PortablePickleMixin
from geofloor.language_models._sequence_means import mean_and_error
from geofloor.language_models._token_rows import TokenRows
from geofloor.students._architecture import check_width, make_student
from geofloor.students._engine import CHECKPOINT, HISTORY, Distillation, Run, is_final
from geofloor.students._progress import has_converged, remaining_fall, warn_of_training
from geofloor.students._saved import model_of, plain_config
from geofloor.students._settings import AUTO, PAPER, plain_settings
from geofloor.toy import ToyModel

_FILE = "geofloor distilled student"


class DistilledStudent(
    ShortReprMixin,
    SharedParametersMixin,
    PortablePickleMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""A student of a given width, distilled from a language model: the floor, observed.

    Forward KL divergence between the next-token distributions of teacher and student at a temperature, over
    all positions, minimized by Muon or AdamW with linear warm-up and cosine decay. The defaults are those that did best
    on small language models; `paper` gives the paper's.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like, torch.nn.Module or ToyModel
        A causal language model of ``transformers``, its name on the hub or its folder, or a module that takes
        token ids and returns logits (its students come from ``make_student.register``). An object is left as it
        is: if it is not on the device, a copy is trained from. Or a fitted `ToyModel`: then `fit` takes
        what `ToyModel.fit` takes and trains as the toy model was trained. Of the other parameters only `init`,
        `random_state`, `device` and `verbose` are used there, and setting any other is an error.
    width : int
        Dimensions d of the student's residual stream, at most the teacher's. All else follows from the teacher:
        `student_config`.
    n_heads : int or None, default=None
        Attention heads of the student, which divide `width`; by default those of `student_config`'s rule.
    temperature : float, default=2.0
        Temperature T of both distributions.
    n_steps : int or "auto", default="auto"
        Steps. ``"auto"`` is one pass over the text, but at least 600 steps and at most 4,000. A short text is passed
        over several times; of a long one a part is used.
    batch_size : int or "auto", default="auto"
        Sequences per step. ``"auto"`` takes about 2,048 tokens, more where 4,000 such steps would not see all of the
        text, up to 16,384 tokens, and never more than an eighth of the sequences.
    learning_rate : float, default=1e-2
        The optimizer's step size after warm-up; it falls to zero along a cosine. The default was measured with Muon on
        teachers of widths 64 to 128.
    weight_decay : float, default=0.01
        On all parameters.
    warmup_steps : int or "auto", default="auto"
        Steps over which the learning rate rises linearly, fewer than `n_steps`. ``"auto"`` is a tenth of them.
    optimizer : {"muon", "adamw"}, default="muon"
        ``"muon"`` [2]_ makes the steps of the blocks' matrices orthogonal, of the size that AdamW's have at the same
        `learning_rate` [3]_, and leaves embeddings, biases and gains to AdamW. ``"adamw"`` is the paper's.
    clip_norm : float or None, default=1.0
        Largest joint norm of the gradients; None leaves them.
    gradient_accumulation : int, default=1
        Parts that a batch, or each process's share of it, is divided into, to save memory; the gradient stays
        that of the batch.
    precision : {None, "bf16"}, default=None
        ``"bf16"`` runs teacher and student under autocast to bfloat16; weights, softmaxes and losses stay
        float32.
    init : {"auto", "principal", "random"}, default="auto"
        How the student starts: see `make_student`. ``"auto"`` is ``"principal"`` where the teacher's family has such a
        start, else ``"random"``.
    cross_entropy_weight : float, default=0.0
        Weight in the loss of the cross-entropy of the text's own next tokens, in nats per token.
    hidden_weight : float, default=0.0
        Weight in the loss of the squared error of a linear map, learnt along the way, from the student's
        last hidden states to the teacher's, as a share of the latter's variance.
    validation_fraction : float, default=0.05
        Share of the sequences, the last ones, held out for evaluation where no `eval_tokens` are given.
    eval_sequences : int, default=256
        Held-out sequences evaluated, at most; the first ones.
    eval_every : int or "auto", default="auto"
        Steps between evaluations. ``"auto"`` is a twentieth of `n_steps`.
    convergence_tol : float, default=0.05
        Largest `remaining_fall_` at which `converged_` is true.
    pad_token_id : int or None, default=None
        Token that stands for padding after the end of a sequence and counts nowhere.
    layer : int, default=-1
        Block whose output `transform` gives, from 0; negative indices count from the last.
    pooling : {"mean", "last", None}, default="mean"
        How `transform` pools the positions of a sequence: see `ActivationExtractor`.
    data_seed : int, default=0
        Seed of the order of the sequences. It is apart from `random_state` so that students of several
        seeds can be trained in one pass.
    teacher_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name, such as ``{"revision": "step1000"}``
        or ``{"dtype": "bfloat16"}``; by default it is loaded in float32.
    checkpoint_path : str, path or None, default=None
        File that `fit` keeps its state in. If it exists, from the same settings, teacher and data, `fit`
        goes on from there to the result of a run never stopped.
    checkpoint_every : int, default=500
        Steps between checkpoints, if there is a `checkpoint_path`.
    random_state : int, RandomState or None, default=None
        Seed of the student's first weights.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``. ``"auto"`` is the device of a teacher
        given as an object on an accelerator, else the best there is; of several processes, each one's own.
    verbose : int, default=0
        Whether to show a progress bar.

    Attributes
    ----------
    floor_ : float
        Loss at the end of training: the mean KL on held-out text over the evaluations of the final tenth of the steps,
        in nats per token, at the temperature and without the factor T². It is the loss after `n_steps_` steps, which
        more steps can lower: see `remaining_fall_`.
    floor_error_ : float
        Its standard error over held-out sequences; NaN if there is but one.
    zero_width_loss_ : float
        Loss on the same text of one distribution for all positions, in nats per token: see `zero_width_kl`. NaN for a
        `ToyModel`.
    remaining_fall_ : float
        Relative fall of the KL on held-out text from a quarter to half of the steps. Twice the steps are not
        expected to take a larger share off `floor_`; mostly they take less. NaN for a `ToyModel` and where `eval_every`
        is too large to tell.
    converged_ : bool
        Whether `remaining_fall_` is at most `convergence_tol`, or `floor_` at most a thousandth of
        `zero_width_loss_`. Always false after fewer than 100 steps, where `floor_` is not below `zero_width_loss_`, and
        where the loss rose again. True says that more steps at the same learning rate are not expected to take
        off more than that. False proves nothing: wide students seldom show it. A `ToyModel` has its own rule.
    history_ : list of dict
        For each evaluation, the first before training: ``step``, ``train_kl`` (mean since the evaluation before;
        None at first), ``eval_kl`` and ``learning_rate``; in nats per token.
    n_parameters_ : int
        Parameters of the student.
    n_steps_, batch_size_, warmup_steps_, eval_every_ : int
        Settings that the fit used. Of these a `ToyModel` gives `n_steps_` only.
    init_ : {"principal", "random"}
        How the student started.
    model_ : torch.nn.Module or ToyModel
        The student, on the device it was trained on.
    device_ : str
        That device.

    See Also
    --------
    distill_widths : Trains several students in one pass.
    AffineCalibrator : Relates floors to predictions.
    ToyModel : Its toy counterpart.

    Notes
    -----
    With logits t of the teacher and s of the student, the loss is

    .. math:: T^2 \, \frac{1}{N} \sum_{n=1}^N \mathrm{KL}\bigl(\mathrm{softmax}(t_n / T) \,\Vert\,
              \mathrm{softmax}(s_n / T)\bigr),

    and what is reported is without the :math:`T^2`. The paper's raw figures [1]_ are sums over 512 positions, times
    :math:`T^2`: 2,048 times what is reported here. For either optimizer a factor on the loss changes nothing but the
    size of its epsilon, and weights of other losses count against :math:`T^2`.

    *Convergence.* The learning rate falls to zero, so that every learning curve is flat at its end. The fall from a
    quarter to half of the steps comes before most of that decay. In 74 pairs of runs of which one has twice the steps
    of the other (``benchmarks/results``: three teachers, both optimizers and starts), twice the steps took off between
    0.10 and 1.00 times that fall, 0.41 times in the median. A `sklearn.exceptions.ConvergenceWarning` tells of fewer
    than 100 steps, of a student no better than one of width 0, of a loss on held-out text that rose again, and of a
    `remaining_fall_` above 0.5, where twice the steps took off 22 to 55%.

    Dropout is off. On a CPU the same seeds, data and number of threads give the same bits.

    *Several processes.* Under ``accelerate launch`` or ``torchrun`` (with ``geofloor[accelerate]``) each process takes
    its share of the sequences of every batch and every evaluation, and gradients are summed before they are clipped:
    batches and result are those of one process, but for the order of sums. Every process must call `fit`, with the
    same arguments; all end with the student. The first one writes checkpoints. Other methods run in the process that
    calls them. A search with ``n_jobs`` has processes of its own: under a launcher its workers refuse to fit.

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
        temperature: float = 2.0,
        n_steps: int | str = AUTO,
        batch_size: int | str = AUTO,
        learning_rate: float = 1e-2,
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
        convergence_tol: float = 0.05,
        pad_token_id: int | None = None,
        layer: int = -1,
        pooling: str | None = "mean",
        data_seed: int = 0,
        teacher_kwargs: dict[str, Any] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.teacher = teacher
        self.width = width
        self.n_heads = n_heads
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
        self.convergence_tol = convergence_tol
        self.pad_token_id = pad_token_id
        self.layer = layer
        self.pooling = pooling
        self.data_seed = data_seed
        self.teacher_kwargs = teacher_kwargs
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

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
            Token ids; of a dataset the column ``input_ids``, whose rows have one length. A memory map, such as
            `geofloor.language_models.token_blocks` writes, and a dataset are read batch by batch. Each epoch takes
            the sequences in a new order. Of a `ToyModel`: what `ToyModel.fit` takes.
        y : None
            Ignored; here by convention.
        eval_tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset, default=None
            Token ids to evaluate on; by default the last sequences of `tokens`, which are not trained on.

        Returns
        -------
        self : DistilledStudent
            The fitted student.

        Raises
        ------
        ValueError
            If data, teacher or parameters don't fit each other, if `checkpoint_path` belongs to other settings,
            data or teacher or is damaged, or if the teacher's logits or the loss become non-finite.
        """
        if isinstance(self.teacher, ToyModel):
            return self._fit_toy(tokens, eval_tokens)
        _fit_together([self], tokens, eval_tokens)
        return self

    def predict(self, tokens: Any) -> np.ndarray:
        """Most likely next token after each position; of a `ToyModel` its output.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids.

        Returns
        -------
        tokens : ndarray of shape (n_sequences, seq_len), int64
            Ids of the tokens that the student expects next.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            return self.model_.predict(tokens)
        return self._by_position(tokens, lambda logits: logits.argmax(dim=1))

    def predict_log_proba(self, tokens: Any) -> np.ndarray:
        """Log-probabilities of the next token after each position, at temperature 1.

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
            If `tokens` holds no token ids of the vocabulary, or the student is a toy model.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            raise ValueError("A ToyModel has no probabilities; use predict.")
        return self._by_position(tokens, lambda logits: torch.log_softmax(logits, dim=1, dtype=torch.float32))

    def transform(self, tokens: Any) -> np.ndarray:
        """Hidden states of the student after block `layer`, pooled by `pooling`.

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
            If `tokens` holds no token ids of the vocabulary, or there is no such layer.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            return self.model_.transform(tokens)
        data = self._open(tokens)
        batch = data.take(np.arange(len(data)))
        rows = list(batch.ids)
        if batch.mask is not None:
            rows = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        extractor = ActivationExtractor(
            self.model_, self.layer, pooling=self.pooling, max_length=None, batch_size=self._rows_at_once()
        )
        return np.asarray(extractor.transform(rows))

    def score(self, tokens: Any, y: Any = None) -> float:
        """Minus the KL divergence from the teacher on given text, so that more is better.

        Parameters
        ----------
        tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
            Token ids, preferably held out.
        y : None
            Ignored; here by convention.

        Returns
        -------
        score : float
            −KL at the temperature, in nats a token; of toy models, minus the importance-weighted squared
            difference between teacher's and student's outputs.

        Raises
        ------
        ValueError
            If `tokens` holds no token ids of the vocabulary, or there is no teacher.
        """
        check_is_fitted(self)
        if isinstance(self.model_, ToyModel):
            difference = self.teacher.predict(tokens) - self.model_.predict(tokens)
            return -float(np.mean(np.square(difference, dtype=np.float64) @ self.model_.importances_))
        settings = plain_settings(self)
        settings.batch_size = self._rows_at_once()
        distillation = _distillation_of([self], settings)
        data = distillation.rows_of(tokens, "tokens")
        student = LanguageModel(on_device(self.model_, distillation.device), "the student")
        with (
            evaluating(distillation.teacher.module),
            evaluating(student.module),
            memory_advice(f"lower batch_size={settings.batch_size}"),
        ):
            sums, counts = distillation.held_out_kl([student], data, np.arange(len(data)))
        return -float(sums.sum() / counts.sum())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted student as one safetensors file, its settings as JSON in the header.

        Parameters
        ----------
        path : str or path
            File to write, atomically. It holds the weights, their configuration and the history, but neither the
            teacher nor the optimiser's state: to continue a `fit` use `checkpoint_path`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        ValueError
            If the student is no model that ``transformers`` ships, so that a file could not tell how to make it again.
        """
        check_is_fitted(self)
        try:
            if not isinstance(self.model_, PreTrainedModel):
                raise ValueError("it is no model of transformers")
            config = plain_config(self.model_)
            _check_width(self.model_, self.width)
        except ValueError as error:
            raise ValueError(
                f"A student of type {type(self.model_).__name__} can't be made again from a file alone: {error}; save "
                "its weights yourself."
            ) from error
        fitted = {name: getattr(self, name) for name in _FITTED}
        fitted |= {name: None for name in _MAYBE_NAN if np.isnan(fitted[name])}
        metadata = {
            "parameters": plain_parameters(self, without=NOT_SAVED),
            "teacher": os.fspath(self.teacher) if self._by_name() else None,
            "config": config,
            "fitted": fitted,
        }
        write_tensors(path, self.model_.state_dict(), kind=_FILE, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, teacher: Any = None, device: str = "auto") -> DistilledStudent:
        """Read a student that `save` wrote. No code in the file is run.

        Parameters
        ----------
        path : str or path
            The file.
        teacher : PreTrainedModel, str, path-like or torch.nn.Module, default=None
            The teacher, which `score` and `fit` need. A file's own word for it is shown, and never loaded from.
        device : str, default="auto"
            Device to predict on.

        Returns
        -------
        student : DistilledStudent
            The fitted student.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, altered or not one of these, or its content is no student.

        Notes
        -----
        Of the parameters, `teacher`, `teacher_kwargs`, `checkpoint_path` and `device` are not in a file.
        """
        tensors, metadata = read_tensors(path, kind=_FILE)
        with refusing(path):
            content = fields(parameters=mapping, teacher=optional(text), config=mapping, fitted=fields(**_FITTED))(
                "metadata", metadata
            )
            student = cls(teacher, **saved_parameters(content["parameters"], cls), device=device)
            plain_settings(student)
            model = model_of(content["config"], tensors)
            _check_width(model, student.width)
            student._set_model(model.to(exact_device(device)))
            student.batch_size_ = content["fitted"]["batch_size_"]
            sample = np.full((1, 2), 1 if student.pad_token_id == 0 else 0)
            if np.isnan(student.predict_log_proba(sample)).any() or not np.isfinite(student.transform(sample)).all():
                raise ValueError("what it gives is not finite")
        for name, value in content["fitted"].items():
            setattr(student, name, float("nan") if value is None else value)
        student._saved_teacher = content["teacher"]
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

    # Checks

    def _rows_at_once(self) -> int:
        if isinstance(self.batch_size, str):
            return self.batch_size_
        return check_number("batch_size", self.batch_size, 1, whole=True)

    # The teacher

    def _by_name(self) -> bool:
        return isinstance(self.teacher, str | os.PathLike)

    def _load_teacher(self, own: torch.device | None = None) -> tuple[torch.device, torch.nn.Module]:
        """The teacher on the device, this process's own if there are several; one given by name is loaded once."""
        if self.teacher is None and getattr(self, "_saved_teacher", None) is not None:
            raise ValueError(
                f"The student's file names the teacher {self._saved_teacher!r:.200}, which is not loaded from a file's "
                "word alone; if you trust it, give DistilledStudent.load(path, teacher=...) or set_params(teacher=...)."
            )
        source = (
            (self.teacher, repr(self.teacher_kwargs), own or exact_device(self.device)) if self._by_name() else None
        )
        if source is None or getattr(self, "_loaded", None) is None or self._loaded[0] != source:
            found = load_language_model(self.teacher, self.teacher_kwargs, own or self.device)
            self._loaded: Any = None if source is None else (source, found)
            return found
        return self._loaded[1]

    # Results

    def _publish(self, run: Run, counts: np.ndarray, zero_width_loss: float, settings: SimpleNamespace) -> None:
        self._set_model(run.model.module.requires_grad_(False))
        self.history_ = list(run.history)
        self.init_, self.n_steps_, self.batch_size_ = settings.init, run.step, settings.batch_size
        self.warmup_steps_, self.eval_every_ = settings.warmup_steps, settings.eval_every
        n_final = sum(is_final(row["step"], run.step) for row in run.history)
        self.floor_, self.floor_error_ = mean_and_error(run.final_sums / n_final, counts)
        self.zero_width_loss_ = zero_width_loss
        self.remaining_fall_ = remaining_fall(run.history, run.step)
        self.converged_ = has_converged(self, settings.convergence_tol)

    def _set_model(self, model: torch.nn.Module) -> None:
        self.model_: Any = model.eval()
        student = LanguageModel(model, "the student")
        self.n_parameters_ = sum(parameter.numel() for parameter in model.parameters())
        self.device_ = str(student.device)
        self._n_tokens, self._max_length = student.n_tokens, student.max_length
        self._n_features_out = int(self.width)

    def _fit_toy(self, samples: Any, eval_tokens: Any) -> DistilledStudent:
        used = {"teacher", "width", "n_heads", "init", "random_state", "device", "verbose"}
        parameters = inspect.signature(DistilledStudent.__init__).parameters
        ignored = [
            f"{name}={shown(value)}"
            for name, value in self.get_params(deep=False).items()
            if name not in used and not _is_default(value, parameters[name].default)
        ]
        if eval_tokens is not None:
            ignored.append("eval_tokens")
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)} would not be used: students of a ToyModel train as it was; leave them out."
            )
        init = "random" if isinstance(self.init, str) and self.init == AUTO else self.init
        toy = make_student(self.teacher, self.width, n_heads=self.n_heads, init=init, random_state=self.random_state)
        self.model_ = toy.set_params(device=self.device, verbose=self.verbose).fit(samples, teacher=self.teacher)
        self.floor_, self.floor_error_ = toy.floor_, toy.standard_error_
        self.zero_width_loss_ = self.remaining_fall_ = float("nan")
        self.history_, self.n_steps_, self.converged_ = toy.history_, toy.n_steps_, toy.converged_
        self.init_ = init
        self.n_parameters_ = toy.components_.size + toy.intercept_.size
        self.device_ = str(exact_device(self.device))
        self._n_features_out = int(self.width)
        return self

    def _open(self, tokens: Any) -> TokenRows:
        return TokenRows(tokens, "tokens", self._n_tokens, self._max_length, self.pad_token_id)

    @torch.no_grad()
    def _by_position(self, tokens: Any, of_logits: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """A function of the student's logits, batch by batch."""
        student = LanguageModel(self.model_, "the student")
        data = self._open(tokens)
        pieces = []
        size = self._rows_at_once()
        with memory_advice(f"lower batch_size={size}"):
            for start in range(0, len(data), size):
                ids = torch.from_numpy(data.take(np.arange(start, min(start + size, len(data)))).ids)
                rows = student.logits(ids.to(student.device))
                found = torch.cat([of_logits(rows.compute(chunk, 1.0)) for chunk in chunks_of(rows)])
                pieces.append(found.view(*ids.shape, *found.shape[1:]).cpu().numpy())
        return np.concatenate(pieces)

    # Files

    def _not_pickled(self) -> Collection[str]:
        return ("_loaded",)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


_FITTED = {
    "floor_": number(),
    "floor_error_": optional(number(0)),
    "zero_width_loss_": number(),
    "remaining_fall_": optional(number(0, 1)),
    "converged_": flag,
    "history_": HISTORY,
    "init_": choice("principal", "random"),
    "n_steps_": number(1, whole=True),
    "batch_size_": number(1, whole=True),
    "warmup_steps_": number(0, whole=True),
    "eval_every_": number(1, whole=True),
}
_MAYBE_NAN = ("floor_error_", "remaining_fall_")


def _check_width(model: PreTrainedModel, width: int) -> None:
    """Refuse a model of another width."""
    found = getattr(model.config, "hidden_size", width)
    if found != width:
        raise ValueError(f"its width={width} is not that of the model, {found}")


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _distillation_of(
    estimators: list[DistilledStudent], settings: SimpleNamespace, processes: Processes = ALONE
) -> Distillation:
    """What trains them, with their teacher, which is loaded once."""
    first = estimators[0]
    device, teacher = first._load_teacher(processes.device)
    for estimator in estimators[1:]:
        estimator._loaded = first._loaded
    return Distillation(estimators, settings, teacher, device, processes)


def _fit_together(estimators: list[DistilledStudent], tokens: Any, eval_tokens: Any) -> None:
    settings = plain_settings(estimators[0])  # all but width, seed and path are shared
    check_choice("pooling", estimators[0].pooling, (None, "mean", "last"))
    for estimator in estimators:
        check_number("width", estimator.width, 1, whole=True)
        if estimator.n_heads is not None:
            check_number("n_heads", estimator.n_heads, 1, whole=True)
        check_random_state(estimator.random_state)
    processes = join_processes(estimators[0].device)
    for estimator in estimators:
        processes.on_main(check_files, estimator)
    distillation = _distillation_of(estimators, settings, processes)
    for estimator in estimators:
        check_width(distillation.teacher.module, estimator.width)
    distillation.open(tokens, eval_tokens)
    advice = f"lower batch_size={settings.batch_size} or raise gradient_accumulation={settings.gradient_accumulation}"
    with evaluating(distillation.teacher.module), memory_advice(advice):
        runs = distillation.train()
        zero_width_loss = distillation.zero_width_loss()
    counts = distillation.eval_counts()
    for run in runs:
        run.estimator._publish(run, counts, zero_width_loss, settings)
    if processes.is_main:
        warn_of_training(estimators)
    distillation.checkpoint_all(runs)  # last, so that students are there even if no more can be written


def distill_widths(
    teacher: Any,
    tokens: Any,
    widths: Sequence[int | tuple[int, int]],
    *,
    random_state: int | None = 0,
    eval_tokens: Any = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    like: DistilledStudent | None = None,
    **settings: Any,
) -> list[DistilledStudent]:
    """Distill students of several widths in one pass over the data, with one forward pass of the teacher per batch.

    Each student ends where `DistilledStudent.fit` with the same seed and settings would end; on a CPU, with the
    same bits.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like, torch.nn.Module or ToyModel
        As in `DistilledStudent`. Students of a `ToyModel` are trained one after the other.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        As in `DistilledStudent.fit`.
    widths : sequence of int or of (int, int)
        Widths, or pairs of width and seed.
    random_state : int or None, default=0
        Seed of students whose seed `widths` does not give.
    eval_tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset, default=None
        As in `DistilledStudent.fit`.
    checkpoint_path : str, path or None, default=None
        Folder for a checkpoint of each student. The same call resumes from there.
    like : DistilledStudent, default=None
        Student whose other parameters are taken where `settings` has none, such as `DistilledStudent.paper` gives.
    **settings
        Other parameters of `DistilledStudent`.

    Returns
    -------
    students : list of DistilledStudent
        Fitted, in the order of `widths`.

    Raises
    ------
    ValueError
        As `DistilledStudent.fit`, or if `widths` is empty or holds the same student twice.

    Examples
    --------
    >>> import numpy as np
    >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    >>> from geofloor.students import distill_widths
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    ...     initializer_range=0.2,
    ... )
    >>> tokens = np.random.default_rng(0).integers(32, size=(512, 12))
    >>> students = distill_widths(GPTNeoXForCausalLM(config), tokens, [8, (8, 1), 12], n_steps=100)
    >>> [(student.width, student.random_state, student.n_steps_) for student in students]
    [(8, 0, 100), (8, 1, 100), (12, 0, 100)]
    """
    pairs = _pairs(widths, random_state)
    folder = None if checkpoint_path is None else check_path("checkpoint_path", checkpoint_path)
    if like is not None:
        check_object("like", like, DistilledStudent, "give a DistilledStudent, such as DistilledStudent.paper(...)")
        own = {"teacher", "width", "random_state", "checkpoint_path"}
        settings = {name: value for name, value in like.get_params(deep=False).items() if name not in own} | settings
    students = [
        DistilledStudent(
            teacher,
            width,
            random_state=seed,
            checkpoint_path=folder and folder / f"width-{width}-seed-{seed}.safetensors",
            **settings,
        )
        for width, seed in pairs
    ]
    if isinstance(teacher, ToyModel):
        return [student.fit(tokens, eval_tokens=eval_tokens) for student in students]
    _fit_together(students, tokens, eval_tokens)
    return students


def _pairs(widths: Any, random_state: Any) -> list[tuple[int, Any]]:
    """Width and seed of each student, in the order given."""
    if isinstance(widths, str | bytes) or not isinstance(widths, Iterable) or getattr(widths, "shape", None) == ():
        raise ValueError(f"widths={shown(widths)} must be a list of widths, or of pairs of width and seed.")
    listed = list(widths)
    pairs = []
    for each in listed:
        pair = tuple(each) if isinstance(each, tuple | list | np.ndarray) and np.ndim(each) else (each, random_state)
        if len(pair) != 2:
            raise ValueError(f"widths={shown(listed)} holds {shown(each)}; give a width, or a pair of width and seed.")
        pairs.append((check_number("widths", pair[0], 1, whole=True), pair[1]))
    if not pairs or any(pair in pairs[:place] for place, pair in enumerate(pairs)):
        raise ValueError(f"widths={shown(listed)} must hold at least one width and no student twice.")
    return pairs
