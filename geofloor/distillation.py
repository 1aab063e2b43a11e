"""Distilling students of given widths: how low they really get, in nats a token."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from transformers import PreTrainedModel

from geofloor._causal import LanguageModel, evaluating, exact_device, load_language_model, on_device
from geofloor._distilling import FINAL_SHARE, HISTORY, Distillation, Run, is_final
from geofloor._divergence import Targets, chunks_of, distillation_kl, mean_and_error
from geofloor._saved_students import model_of, plain_config
from geofloor._token_rows import TokenRows
from geofloor._training.checkpoints import read_tensors, write_tensors
from geofloor._training.devices import memory_advice, to_device
from geofloor._training.processes import ALONE, Processes, join_processes
from geofloor._training.schema import fields, flag, mapping, number, optional, refusing, text
from geofloor._training.settings import NOT_SAVED, check_files, check_range, plain_parameters, saved_parameters
from geofloor._validation import check_choice, check_number
from geofloor.language_models import ActivationExtractor
from geofloor.students import make_student
from geofloor.toy import ToyModel

__all__ = ["DistilledStudent", "distill_widths", "distillation_kl", "zero_width_kl"]

_FILE = "geofloor distilled student"


class DistilledStudent(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A student of a given width, distilled from a language model: the floor, observed.

    Forward KL divergence between the next-token distributions of teacher and student at a temperature, over
    all positions, minimised by AdamW or Muon with linear warm-up and cosine decay. Defaults are the paper's.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like, torch.nn.Module or ToyModel
        A causal language model of ``transformers``, its name on the hub or its folder, or a module that takes
        token ids and returns logits (its students come from ``make_student.register``). An object is left as it
        is: if it is not on the device, a copy is trained from. Or a fitted `ToyModel`: then `fit` takes
        what `ToyModel.fit` takes, and training is the toy model's, with its own settings.
    width : int
        Dimensions d of the student's residual stream. All else follows from the teacher: `student_config`.
    n_heads : int or None, default=None
        Attention heads of the student, which divide `width`; by default those of `student_config`'s rule.
    temperature : float, default=2.0
        T.
    n_steps : int, default=30_000
        Steps.
    batch_size : int, default=32
        Sequences a step.
    learning_rate : float, default=3e-4
        The optimizer's step size after warm-up; it falls to zero along a cosine.
    weight_decay : float, default=0.01
        On all parameters.
    warmup : int, default=1000
        Steps over which the learning rate rises linearly; below `n_steps`.
    optimizer : {"adamw", "muon"}, default="adamw"
        ``"adamw"`` is the paper's. ``"muon"`` [2]_ makes the steps of the blocks' matrices orthogonal, of the size that
        AdamW's have at the same `learning_rate` [3]_, and leaves embeddings, biases and gains to AdamW.
    clip_norm : float or None, default=None
        Largest joint norm of the gradients; None leaves them.
    gradient_accumulation : int, default=1
        Parts that a batch, or each process's share of it, is divided into, to save memory; the gradient stays
        that of the batch.
    precision : {None, "bf16"}, default=None
        ``"bf16"`` runs teacher and student under autocast to bfloat16; weights, softmaxes and losses stay
        float32.
    init : {"random", "principal"}, default="random"
        How the student starts: see `make_student`.
    cross_entropy_weight : float, default=0.0
        Weight in the loss of the cross-entropy of the text's own next tokens, in nats a token.
    hidden_weight : float, default=0.0
        Weight in the loss of the squared error of a linear map, learnt along the way, from the student's
        last hidden states to the teacher's, as a share of the latter's variance.
    validation_fraction : float, default=0.05
        Share of the sequences, the last ones, held out for evaluation where no `eval_tokens` are given.
    eval_sequences : int, default=256
        Held-out sequences evaluated, at most; the first ones.
    eval_every : int, default=500
        Steps between evaluations.
    convergence_tol : float, default=0.01
        Relative fall of the evaluation KL over the final tenth of the steps below which it counts as stopped.
    pad_token_id : int or None, default=None
        Token that stands for padding after the end of a sequence and counts nowhere.
    layer : int, default=-1
        Block whose output `transform` gives, from 0; negative indices count from the last.
    pooling : {"mean", "last", None}, default="mean"
        What `transform` makes of a sequence: see `ActivationExtractor`.
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
        Steps between checkpoints.
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
        Mean KL on held-out text over the evaluations of the final tenth of the steps, in nats a token, at
        the temperature and without the factor T².
    floor_error_ : float
        Its standard error over held-out sequences; NaN if there is but one.
    history_ : list of dict
        For each evaluation, the first before training: ``step``, ``train_kl`` (mean since the evaluation before;
        None at first), ``eval_kl`` and ``learning_rate``; in nats a token.
    n_parameters_ : int
        Parameters of the student.
    converged_ : bool
        Whether the mean evaluation KL of the final tenth of the steps is less than `convergence_tol`, relatively,
        below that of the tenth before. It is necessary, not sufficient: the learning rate is small by then, so
        what tells is another run with twice the steps.
    n_steps_ : int
        Steps taken.
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
    >>> tokens = np.random.default_rng(0).integers(32, size=(64, 12))
    >>> student = DistilledStudent(
    ...     teacher, 8, n_steps=40, warmup=5, batch_size=8, learning_rate=1e-2, random_state=0
    ... ).fit(tokens)
    >>> student.floor_ < student.history_[0]["eval_kl"]
    True
    >>> student.predict(tokens[:3]).shape, student.transform(tokens[:3]).shape
    ((3, 12), (3, 8))
    """

    def __init__(
        self,
        teacher: Any,
        width: int,
        *,
        n_heads: int | None = None,
        temperature: float = 2.0,
        n_steps: int = 30_000,
        batch_size: int = 32,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.01,
        warmup: int = 1000,
        optimizer: str = "adamw",
        clip_norm: float | None = None,
        gradient_accumulation: int = 1,
        precision: str | None = None,
        init: str = "random",
        cross_entropy_weight: float = 0.0,
        hidden_weight: float = 0.0,
        validation_fraction: float = 0.05,
        eval_sequences: int = 256,
        eval_every: int = 500,
        convergence_tol: float = 0.01,
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
        self.warmup = warmup
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
            return self._fit_toy(tokens)
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
            self.model_, self.layer, pooling=self.pooling, max_length=None, batch_size=self.batch_size
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
        distillation = _distillation_of([self])
        data = distillation.rows_of(tokens, "tokens")
        student = LanguageModel(on_device(self.model_, distillation.device), "the student")
        with evaluating(distillation.teacher.module), evaluating(student.module):
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
        metadata = {
            "parameters": plain_parameters(self, without=NOT_SAVED),
            "teacher": os.fspath(self.teacher) if self._by_name() else None,
            "config": config,
            "fitted": {**fitted, "floor_error_": None if np.isnan(self.floor_error_) else self.floor_error_},
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
            student._check_parameters()
            model = model_of(content["config"], tensors)
            _check_width(model, student.width)
            student._set_model(model.to(exact_device(device)))
            sample = np.full((1, 2), 1 if student.pad_token_id == 0 else 0)
            if np.isnan(student.predict_log_proba(sample)).any() or not np.isfinite(student.transform(sample)).all():
                raise ValueError("what it gives is not finite")
        for name, value in content["fitted"].items():
            setattr(student, name, value)
        if student.floor_error_ is None:
            student.floor_error_ = float("nan")
        student._saved_teacher = content["teacher"]
        return student

    # Checks

    def _check_parameters(self) -> None:
        for name in ("n_steps", "batch_size", "gradient_accumulation", "eval_every", "eval_sequences"):
            check_range(name, getattr(self, name), 1, whole=True)
        check_range("checkpoint_every", self.checkpoint_every, 1, whole=True)
        check_range("width", self.width, 1, whole=True)
        if self.n_heads is not None:
            check_range("n_heads", self.n_heads, 1, whole=True)
        check_range("warmup", self.warmup, 0, whole=True)
        check_range("data_seed", self.data_seed, 0, whole=True)
        for name in ("weight_decay", "cross_entropy_weight", "hidden_weight", "convergence_tol"):
            check_range(name, getattr(self, name), 0)
        for name in ("temperature", "learning_rate"):
            check_range(name, getattr(self, name), 0)
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0.")
        if self.clip_norm is not None:
            check_range("clip_norm", self.clip_norm, 0)
        check_range("validation_fraction", self.validation_fraction, 0, high=1)
        if self.warmup >= self.n_steps:
            raise ValueError(f"warmup={self.warmup} must be below n_steps={self.n_steps}; shorten it.")
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation={self.gradient_accumulation} divides batches of batch_size={self.batch_size} "
                "sequences; it can't exceed that."
            )
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r} must be 'adamw' or 'muon'.")
        check_choice("pooling", self.pooling, (None, "mean", "last"))
        if self.precision not in (None, "bf16"):
            raise ValueError(f"precision={self.precision!r} must be None or 'bf16'.")

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

    def _publish(self, run: Run, counts: np.ndarray) -> None:
        self._set_model(run.model.module.requires_grad_(False))
        self.history_ = list(run.history)
        self.n_steps_ = run.step
        n_final = sum(is_final(row["step"], self.n_steps) for row in run.history)
        self.floor_, self.floor_error_ = mean_and_error(run.final_sums / n_final, counts)
        self.converged_ = _has_stopped(run.history, self.n_steps, self.convergence_tol)

    def _set_model(self, model: torch.nn.Module) -> None:
        self.model_: Any = model.eval()
        student = LanguageModel(model, "the student")
        self.n_parameters_ = sum(parameter.numel() for parameter in model.parameters())
        self.device_ = str(student.device)
        self._n_tokens, self._max_length = student.n_tokens, student.max_length
        self._n_features_out = int(self.width)

    def _fit_toy(self, samples: Any) -> DistilledStudent:
        toy = make_student(
            self.teacher, self.width, n_heads=self.n_heads, init=self.init, random_state=self.random_state
        )
        self.model_ = toy.set_params(device=self.device, verbose=self.verbose).fit(samples, teacher=self.teacher)
        self.floor_, self.floor_error_ = toy.floor_, toy.standard_error_
        self.history_, self.n_steps_, self.converged_ = toy.history_, toy.n_steps_, toy.converged_
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
        for start in range(0, len(data), self.batch_size):
            ids = torch.from_numpy(data.take(np.arange(start, min(start + self.batch_size, len(data)))).ids)
            rows = student.rows(ids.to(student.device))
            found = torch.cat([of_logits(rows.logits(chunk, 1.0)) for chunk in chunks_of(rows)])
            pieces.append(found.view(*ids.shape, *found.shape[1:]).cpu().numpy())
        return np.concatenate(pieces)

    # Files

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        state.pop("_loaded", None)  # loaded again where it is needed
        return state

    def __sklearn_clone__(self) -> DistilledStudent:
        # The teacher is shared: it is never changed, and may be large.
        shell = copy.copy(self)
        shell.teacher = None
        return super(DistilledStudent, shell).__sklearn_clone__().set_params(teacher=self.teacher)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


_FITTED = {
    "floor_": number(),
    "floor_error_": optional(number(0)),
    "history_": HISTORY,
    "converged_": flag,
    "n_steps_": number(1, whole=True),
}


def _check_width(model: PreTrainedModel, width: int) -> None:
    """Refuse a model of another width."""
    found = getattr(model.config, "hidden_size", width)
    if found != width:
        raise ValueError(f"its width={width} is not that of the model, {found}")


def _has_stopped(history: list[dict[str, Any]], n_steps: int, tol: float) -> bool:
    """Whether the KL of the final evaluations is hardly below that of the tenth of the steps before."""
    final = [row["eval_kl"] for row in history if is_final(row["step"], n_steps)]
    earlier = [row for row in history if row["step"] > 0 and not is_final(row["step"], n_steps)]
    before = [row["eval_kl"] for row in earlier if row["step"] > (1.0 - 2 * FINAL_SHARE) * n_steps]
    before = before or [row["eval_kl"] for row in earlier[-1:]]
    return bool(before) and float(np.mean(before)) - float(np.mean(final)) < tol * float(np.mean(before))


def _distillation_of(estimators: list[DistilledStudent], processes: Processes = ALONE) -> Distillation:
    """What trains them, with their teacher, which is loaded once."""
    first = estimators[0]
    device, teacher = first._load_teacher(processes.device)
    for estimator in estimators[1:]:
        estimator._loaded = first._loaded
    return Distillation(estimators, teacher, device, processes)


def _fit_together(estimators: list[DistilledStudent], tokens: Any, eval_tokens: Any) -> None:
    for estimator in estimators:
        estimator._check_parameters()
    processes = join_processes(estimators[0].device)
    for estimator in estimators:
        processes.on_main(check_files, estimator)
    distillation = _distillation_of(estimators, processes)
    distillation.open(tokens, eval_tokens)
    first = estimators[0]
    advice = f"lower batch_size={first.batch_size} or raise gradient_accumulation={first.gradient_accumulation}"
    with evaluating(distillation.teacher.module), memory_advice(advice):
        runs = distillation.train()
    counts = distillation.eval_counts()
    for run in runs:
        run.estimator._publish(run, counts)
    distillation.checkpoint_all(runs)  # last, so that students are there even if no more can be written


def distill_widths(
    teacher: Any,
    tokens: Any,
    widths: Sequence[int | tuple[int, int]],
    *,
    random_state: int | None = 0,
    eval_tokens: Any = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> list[DistilledStudent]:
    """Distil students of several widths in one pass over the data, with one forward pass of the teacher a batch.

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
    >>> from geofloor.distillation import distill_widths
    >>> config = GPTNeoXConfig(
    ...     vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ... )
    >>> tokens = np.random.default_rng(0).integers(32, size=(64, 12))
    >>> students = distill_widths(
    ...     GPTNeoXForCausalLM(config), tokens, [8, (8, 1), 16], n_steps=20, warmup=5, batch_size=8
    ... )
    >>> [(student.width, student.random_state, student.n_steps_) for student in students]
    [(8, 0, 20), (8, 1, 20), (16, 0, 20)]
    """
    pairs = [tuple(pair) if isinstance(pair, tuple | list) else (pair, random_state) for pair in widths]
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"widths={list(widths)!r} must hold at least one width and no student twice.")
    students = [
        DistilledStudent(
            teacher,
            width,
            random_state=seed,
            checkpoint_path=checkpoint_path and Path(checkpoint_path) / f"width-{width}-seed-{seed}.safetensors",
            **settings,
        )
        for width, seed in pairs
    ]
    if isinstance(teacher, ToyModel):
        return [student.fit(tokens) for student in students]
    _fit_together(students, tokens, eval_tokens)
    return students


def zero_width_kl(
    teacher: Any,
    tokens: Any,
    *,
    temperature: float = 2.0,
    batch_size: int = 8,
    pad_token_id: int | None = None,
    teacher_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
) -> float:
    r"""Loss of a student of width 0, which gives every position the same distribution: no student need be trained.

    Parameters
    ----------
    teacher : PreTrainedModel, str, path-like or torch.nn.Module
        As in `DistilledStudent`.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset
        Token ids, preferably those that students are evaluated on.
    temperature : float, default=2.0
        T.
    batch_size : int, default=8
        Sequences a forward pass.
    pad_token_id : int or None, default=None
        As in `DistilledStudent`.
    teacher_kwargs : dict or None, default=None
        As in `DistilledStudent`.
    device : str, default="auto"
        As in `DistilledStudent`.

    Returns
    -------
    kl : float
        In nats a token.

    Raises
    ------
    ValueError
        If teacher and tokens don't fit each other, `temperature` is not above 0, or the teacher's logits are not
        finite.

    See Also
    --------
    LossForecaster : Takes it as `zero_width_loss`.

    Notes
    -----
    Of all distributions q, the mean :math:`\bar p` of the teacher's has the smallest mean divergence,
    :math:`\min_q \frac{1}{N} \sum_n \mathrm{KL}(p_n \Vert q) = H(\bar p) - \frac{1}{N} \sum_n H(p_n)`, the information
    that a position gives about its next token.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.datasets import load_teacher
    >>> from geofloor.distillation import zero_width_kl
    >>> tokens = np.random.default_rng(0).integers(2048, size=(8, 64))
    >>> 0 < zero_width_kl(load_teacher().path, tokens) < 7.63  # log 2048
    True
    """
    batch_size = check_number("batch_size", batch_size, 1, whole=True)
    temperature = check_number("temperature", temperature, 1e-6)
    place, module = load_language_model(teacher, teacher_kwargs, device)
    model = LanguageModel(module, f"teacher={type(module).__name__}")
    rows = model.token_rows(tokens, "tokens", pad_token_id)
    total = torch.zeros(model.n_vocabulary, dtype=torch.float64)
    negative_entropy, n_positions = 0.0, 0
    with evaluating(module), torch.no_grad(), memory_advice(f"lower batch_size={batch_size}"):
        for start in range(0, len(rows), batch_size):
            batch = rows.take(np.arange(start, min(start + batch_size, len(rows))))
            states = model.rows(to_device(batch.ids, place))
            if batch.mask is not None:
                states = states._replace(rows=states.rows[to_device(batch.mask.reshape(-1), place)])
            targets = Targets(states, temperature)
            for index in range(len(targets.chunks)):
                probabilities, negative_entropies = targets.chunk(index)
                total += probabilities.sum(dim=0).cpu().double()
                negative_entropy += float(negative_entropies.cpu().double().sum())
            n_positions += len(states.rows)
    mean = total / n_positions
    kl = negative_entropy / n_positions - float(torch.xlogy(mean, mean).sum())
    if not np.isfinite(kl):
        raise ValueError("The teacher's logits are not finite; check its weights, or load it with more range.")
    return kl
