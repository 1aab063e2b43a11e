"""Stages of a plan: the bottleneck, the students and the features of a loaded teacher."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geofloor._training.devices import resolve_device
from geofloor._validation import check_object, check_path, shown
from geofloor.features import FeatureStatistics, SparseAutoencoder, load_autoencoder
from geofloor.language_models import AblationPredictor, ActivationExtractor, BottleneckPredictor
from geofloor.planning._settings import PlanSettings
from geofloor.planning._text import PlanTokens
from geofloor.students import count_parameters, distill_widths, student_config
from geofloor.students._architecture import check_student, default_init
from geofloor.theory import FloorPredictor

_POSITIONS = 2048  # that each bound is measured on
_FITTED = 20_480  # that the unembedding is fitted to
_READ = 3  # tokens read for the bottleneck, per position fitted
_FORWARD = 8192  # tokens per forward pass of the teacher
_ROWS = 65_536  # activations that are encoded at a time


class TeacherFacts(NamedTuple):
    """What a plan says of its teacher."""

    name: str
    kind: str  # model_type of transformers, or the class
    width: int  # dimensions
    n_layers: int
    n_heads: int
    n_vocabulary: int
    n_parameters: int
    digest: str  # SHA-256 of its weights


class StudentRun(NamedTuple):
    """One student and its loss."""

    width: int
    n_steps: int | None  # None: not told
    loss: float  # nats per token
    error: float | None = None  # standard error over held-out sequences
    init: str | None = None
    source: str = "plan"  # "plan", or "given" by the user

    @property
    def key(self) -> tuple[int, int | None]:
        """Width and steps."""
        return self.width, self.n_steps


class Features(NamedTuple):
    """A dictionary of features, and what students of each width would drop."""

    layer: int
    n_latents: int
    n_features: int
    mean_l0: float
    alpha: float
    capacity: float  # features per dimension
    critical_width: float  # dimensions
    explained_variance: float | None
    tail_exponent: float | None
    total: float  # floor of width 0, in squared units of the activations
    widths: tuple[int, ...]
    kept: tuple[int, ...]
    floors: tuple[float, ...]  # Eq. 2, in squared units of the activations
    nats: tuple[float, ...]  # loss of the teacher without the dropped features, in nats per token
    warnings: tuple[str, ...]  # reasons not to trust the dictionary


def describe_teacher(module: Any, name: str, digest: str) -> TeacherFacts:
    """Read what a plan says of a loaded teacher.

    Raises
    ------
    ValueError
        If it is no decoder with a width, so that nothing here applies.
    """
    config = module.config.get_text_config()
    width = getattr(config, "hidden_size", None)
    if width is None:
        raise ValueError(f"teacher={name!r} has a configuration without hidden_size; a plan needs a language model.")
    return TeacherFacts(
        name,
        config.model_type or type(module).__name__,
        int(width),
        int(config.num_hidden_layers),
        int(getattr(config, "num_attention_heads", 0)),
        int(config.vocab_size),
        sum(each.numel() for each in module.parameters()),
        digest,
    )


def own_head_dim(module: Any) -> int | None:
    """Return the size of the teacher's heads if its students can keep it at any width, or None.

    Heads of another size rotate at other frequencies, and a principal start then loses more.
    """
    config = module.config.get_text_config()
    size = getattr(config, "head_dim", None)
    if not isinstance(size, int):
        return None
    try:
        student_config(config, max(config.hidden_size // 2, 1), head_dim=size)
    except ValueError:
        return None
    return size


def heads_of(settings: PlanSettings) -> dict[str, Any]:
    """Return the keyword arguments on heads for students."""
    return {} if settings.head_dim is None else {"head_dim": settings.head_dim}


def reason_for_no_students(module: Any, settings: PlanSettings) -> str | None:
    """Return why students can't be trained, or None."""
    init = default_init(module) if settings.init == "auto" else settings.init
    try:
        for width in settings.run_widths or ():
            check_student(module, width, init=init, **heads_of(settings))
    except ValueError as error:
        return str(error)
    return None


def student_sizes(module: Any, width: int, settings: PlanSettings) -> tuple[int | None, int | None]:
    """Return heads and parameters of a student, or None twice if there is none of this width."""
    try:
        config = student_config(module.config, width, **heads_of(settings))
        heads = getattr(config.get_text_config(), "num_attention_heads", None)
        return heads, count_parameters(config)
    except ValueError:
        return None, None


def bottleneck_tokens(text: PlanTokens) -> np.ndarray:
    """Return the sequences that the bottleneck is measured on: enough of those measured, and all held out."""
    length = text.measured.shape[1]
    n = max(-(-_READ * _FITTED // length) - len(text.held_out), 0)
    return np.concatenate([text.held_out, text.measured[:n]])


def measure_bottleneck(
    module: Any, text: PlanTokens, settings: PlanSettings, *, device: str, verbose: int
) -> BottleneckPredictor:
    """Measure the least loss of any student, at the widths of the table and of the students."""
    length = text.measured.shape[1]
    bound = BottleneckPredictor(
        module,
        widths=sorted({*(settings.widths or ()), *(settings.run_widths or ())}),
        n_positions=_POSITIONS,
        n_fitted=_FITTED,
        batch_size=max(_FORWARD // length, 1),
        device=device,
        random_state=settings.random_state,
        verbose=verbose,
    )
    return bound.fit(bottleneck_tokens(text))


def train_students(
    module: Any,
    text: PlanTokens,
    settings: PlanSettings,
    missing: Sequence[tuple[int, int]],
    *,
    folder: Path | None,
    device: str,
    verbose: int,
    report_to: Any = None,
) -> list[StudentRun]:
    """Train the students of some pairs of width and steps.

    Parameters
    ----------
    missing : sequence of (int, int)
        Pairs of width and steps.
    folder : Path or None
        Folder for checkpoints.
    report_to : str, list of str or None, default=None
        Trackers, as in `DistilledStudent`.
    """
    budgets_of: dict[int, tuple[int, ...]] = {}
    for width, n_steps in missing:
        budgets_of[width] = (*budgets_of.get(width, ()), n_steps)
    runs = []
    for budgets in dict.fromkeys(budgets_of.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)  # the checks of the plan say it
            students = distill_widths(
                module,
                text.trained,
                [width for width, each in budgets_of.items() if each == budgets],
                budgets=budgets,
                eval_tokens=text.held_out,
                batch_size=settings.batch_size,
                init=settings.init,
                checkpoint_dir=folder,
                checkpoint_every=50,
                random_state=settings.random_state,
                device=device,
                verbose=verbose,
                report_to=report_to,
                **heads_of(settings),
            )
        runs += [StudentRun(each.width, each.n_steps_, each.floor_, each.floor_error_, each.init_) for each in students]
    return runs


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Collect the warnings of convergence, for the checks."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for each in caught:
        if issubclass(each.category, UserWarning):
            found.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def measure_features(
    module: Any,
    text: PlanTokens,
    settings: PlanSettings,
    *,
    layer: int,
    autoencoder: Any = None,
    folder: Path | None,
    device: str,
    verbose: int,
    done: Callable[[str], None],
    report_to: Any = None,
) -> Features:
    """Measure the features of the teacher, and what students of each width drop.

    Parameters
    ----------
    layer : int
        Block to measure after.
    autoencoder : SparseAutoencoder, str, path or None
        A trained dictionary of this block; None trains one.
    folder : Path or None
        Folder for activations and checkpoints. The dictionary and its statistics go to the folder above it.
    done : callable
        Called with a line after each part.
    report_to : str, list of str or None, default=None
        Trackers, as in `SparseAutoencoder`.
    """
    length = text.measured.shape[1]
    at_once = max(_FORWARD // length, 1)
    extractor = ActivationExtractor(
        module, layer, max_length=length, batch_size=at_once, device=device, verbose=verbose
    ).fit()
    if folder is None:
        train = extractor.transform(text.measured)
    else:
        train = extractor.transform_to_store(text.measured, folder / "activations")
    test = np.asarray(extractor.transform(text.held_out))
    done(f"activations of {len(train):,} tokens after block {layer}")
    with _collected() as found:
        if autoencoder is None:
            sae = SparseAutoencoder(
                checkpoint_path=None if folder is None else folder / "autoencoder.checkpoint",
                random_state=settings.random_state,
                device=device,
                verbose=verbose,
                report_to=report_to,
            ).fit(train)
            if folder is not None:
                sae.save(folder.parent / "autoencoder.safetensors")
        else:
            sae = read_autoencoder(autoencoder, device)
        explained = float(sae.score(test))
        statistics = FeatureStatistics()
        for begin in range(0, len(train), _ROWS):
            statistics.partial_fit(sae.transform(train[begin : begin + _ROWS]))
        floor = FloorPredictor().fit(statistics.table_)
    if folder is not None:
        statistics.save(folder.parent / "statistics.safetensors")
    done(
        f"{statistics.n_alive_:,} features, {statistics.mean_l0_:.1f} per token, {explained:.1%} of variance explained"
    )
    widths = settings.widths or ()
    nats = AblationPredictor(module, layer, sae, statistics, batch_size=at_once, device=device, verbose=verbose).fit(
        text.held_out
    )
    exponent = float(statistics.tail_exponent_)
    return Features(
        layer,
        int(sae.n_latents_),
        int(statistics.n_alive_),
        float(statistics.mean_l0_),
        float(statistics.alpha_),
        float(floor.capacity_),
        float(floor.critical_width_),
        explained,
        exponent if np.isfinite(exponent) else None,
        float(floor.predict([0])[0]),
        widths,
        tuple(int(each) for each in floor.kept_features(widths)),
        tuple(float(each) for each in floor.predict(widths)),
        tuple(float(each) for each in nats.predict(widths)),
        tuple(dict.fromkeys(found)),
    )


def read_autoencoder(autoencoder: Any, device: str) -> Any:
    """Return a trained dictionary: an estimator as it is, a file or repository loaded.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If it can't be read.
    """
    if isinstance(autoencoder, str | os.PathLike):
        path = check_path("autoencoder", autoencoder)
        if path.is_file():
            try:
                return SparseAutoencoder.load(path, device=str(resolve_device(device)))
            except ValueError:
                pass
        try:
            return load_autoencoder(autoencoder, device=device)
        except ValueError as error:
            raise ValueError(f"autoencoder={shown(autoencoder)} can't be used: {error}") from error
    return check_object("autoencoder", autoencoder, SparseAutoencoder, "give one, its file, or a published dictionary")
