"""Sweeps over toy models: every width, sparsity, number of features and seed of a grid."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning

from geofloor._files.atomic import check_writable, remove_left_behind
from geofloor._files.schema import refusing
from geofloor._training.checkpoints import check_tensors, read_tensors, write_tensors
from geofloor._training.devices import one_thread, resolve_device
from geofloor._training.progress import progress_bar
from geofloor._training.seeds import draw_seed
from geofloor._validation import check_choice, check_number, check_object, check_path, plain_array, shown
from geofloor.toy._engine import DistributionStream, Stack, evaluate, initial_parameters, stacked, train
from geofloor.toy._features import SparseFeatures
from geofloor.toy._model import Importance, check_settings, check_width, is_kept, resolve_importances

_FILE = "geofloor toy sweep part"
_SAMPLES, _START = 0, 1  # what a seed is for
_TARGETS = ("data", "teacher")
# Of all models of a part together: samples of a part stay within some hundred megabytes, a GPU's within some gigabytes.
_MOST_FEATURES = {"cpu": 4096, "cuda": 65_536}
_MOST_JOBS = 2**20
KEYS = ["n_features", "alpha", "teacher_width", "width"]
COLUMNS = [
    *KEYS, "seed", "floor", "standard_error", "kept", "dropped_share", "data_floor", "data_standard_error",
    "n_steps", "converged", "total",
]  # fmt: skip


class _Model(NamedTuple):
    """One model of a sweep; `teacher_width` is 0 where the data are the target."""

    n_features: int
    alpha: float
    width: int
    seed: int
    teacher_width: int = 0


def toy_sweep(
    n_features: int | Sequence[int] = (10, 20, 40),
    widths: Sequence[int] | None = None,
    alphas: float | Sequence[float] = (0.8, 0.9, 0.95, 0.99),
    *,
    teacher_widths: Sequence[int] | None = (3, 5, 8, 10),
    n_seeds: int = 20,
    importance: Importance = "zipf",
    amplitude: str = "uniform",
    target: str = "data",
    n_steps: int = 1500,
    max_rounds: int = 10,
    tol: float = 5e-3,
    batch_size: int = 128,
    learning_rate: float = 1e-2,
    n_eval_samples: int = 262_144,
    models_per_batch: int = 64,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
    device: str = "auto",
    verbose: int = 0,
) -> pd.DataFrame:
    """Train toy models at every point of a grid and measure their floors.

    The defaults are the paper's sweep: 48 configurations of features, sparsity and teacher's width, a
    student of each width up to the teacher's, and 20 seeds.

    Parameters
    ----------
    n_features : int or sequence of int, default=(10, 20, 40)
        Numbers of features n.
    widths : sequence of int, default=None
        Widths d of the students; None means all from 1 to the teacher's.
    alphas : float or sequence of float, default=(0.8, 0.9, 0.95, 0.99)
        Sparsities, in [0, 1).
    teacher_widths : sequence of int or None, default=(3, 5, 8, 10)
        Widths of the teachers. A student is at most as wide as its teacher. With ``target="data"``
        a teacher does nothing else, and students that differ in it alone are trained once; then None,
        with `widths`, leaves teachers out.
    n_seeds : int, default=20
        Models at each point, with different starting points.
    importance : {"zipf", "uniform"}, float, array-like or callable, default="zipf"
        Weights of the features, as in `ToyModel`.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default="uniform"
        Law of an active feature, as in `SparseFeatures`.
    target : {"data", "teacher"}, default="data"
        What students learn: the sample itself, or the output of a trained teacher. Each seed has its
        own teacher.
    n_steps, max_rounds, tol, batch_size, learning_rate, n_eval_samples
        As in `ToyModel`.
    models_per_batch : int, default=64
        Models trained in one computation, which is also the unit of parallel work and of resuming; fewer
        where they have more than 64 features.
    checkpoint_dir : str, path or None, default=None
        Directory that finished parts are kept in. A sweep with the same settings goes on from them.
    n_jobs : int, default=None
        Workers, each on one core; the backend is joblib's, so that ``joblib.parallel_config`` chooses
        processes, Dask, Ray or another.
    random_state : int, RandomState or None, default=0
        Seed of samples and starting points.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    sweep : DataFrame
        One row for each configuration, width and seed, with the columns

        - ``n_features``, ``alpha``, ``teacher_width`` (unless left out), ``width``, ``seed``;
        - ``floor``: importance-weighted squared error on fresh samples, against the target;
        - ``standard_error``: of the floor, from the spread over samples;
        - ``kept``: features with ‖W_i‖² ≥ 1/2;
        - ``dropped_share``: share of the loss that is due to the others, with the data as the target;
        - ``n_steps``, ``converged``: steps taken, and whether the loss had stopped falling;
        - ``total``: Σ I_i E[x_i²], the loss of a model that always answers 0;
        - ``data_floor``, ``data_standard_error``: with ``target="teacher"``, the same against the data.

    Raises
    ------
    ValueError
        If the grid is empty, a parameter is out of range, a width exceeds the number of features or is
        wider than every teacher, or a file in `checkpoint_dir` is damaged or is not the part that it should be.
    SweepError
        If parts of the sweep failed or could not be written; it has the rows of the models that are trained.

    Warns
    -----
    ConvergenceWarning
        If losses were still falling after `max_rounds`.
    UserWarning
        If a worker died; its parts are run again.

    See Also
    --------
    summarize_sweep : Mean, spread and best of the seeds.
    predict_sweep : Puts predictions beside the measured floors.
    ToyModel : A single model.

    Notes
    -----
    The models of a batch may differ in everything but the shape of their padded arrays. All seeds and
    widths of a configuration see the same stream of samples, and each model's starting point depends on
    its own configuration, width and seed alone. So the result does not depend on `n_jobs`, the backend,
    `models_per_batch`, or on what else is in the grid; on one kind of machine it is the same to the bit.
    Common samples also make differences between widths and seeds much more precise than floors are.

    Examples
    --------
    >>> from geofloor.toy import summarize_sweep, toy_sweep
    >>> sweep = toy_sweep(10, alphas=0.9, teacher_widths=[2], n_seeds=3, n_eval_samples=8192)
    >>> summarize_sweep(sweep)[["width", "n_seeds"]].to_numpy().tolist()
    [[1, 3], [2, 3]]
    >>> sweep.groupby("width").floor.mean().diff().iloc[1] < 0
    np.True_
    """
    numbers = check_settings(
        n_steps=n_steps,
        max_rounds=max_rounds,
        tol=tol,
        batch_size=batch_size,
        learning_rate=learning_rate,
        n_eval_samples=n_eval_samples,
    )
    n_seeds = check_number("n_seeds", n_seeds, 1, whole=True)
    models_per_batch = check_number("models_per_batch", models_per_batch, 1, whole=True)
    check_choice("target", target, _TARGETS)
    if n_jobs is not None:
        n_jobs = check_number("n_jobs", n_jobs, -_MOST_JOBS, _MOST_JOBS, whole=True)
    resolve_device(device)
    grid = _grid(n_features, widths, alphas, teacher_widths, target)
    importances = {n: resolve_importances(importance, n).tolist() for n in sorted({point[0] for point in grid})}
    settings = {"amplitude": amplitude, **numbers, "entropy": draw_seed(random_state)}
    SparseFeatures(1, 0.5, amplitude)  # names an unknown law before any work
    if checkpoint_dir is not None:
        check_object("checkpoint_dir", checkpoint_dir, (str, os.PathLike), "give the path of a folder")
        check_writable("checkpoint_dir", Path(checkpoint_dir) / "part.safetensors")
    run = _Run(settings, importances, models_per_batch, checkpoint_dir, n_jobs, device, verbose)
    seeds = range(n_seeds)
    if target == "data":
        students = run({_Model(n, a, d, s) for n, a, _, d in grid for s in seeds}, {})
        found = {(n, a, t, d, s): students[_Model(n, a, d, s)] for n, a, t, d in grid for s in seeds}
    else:
        teachers = run({_Model(n, a, t, s) for n, a, t, _ in grid for s in seeds}, {}, keep_parameters=True)
        students = run({_Model(n, a, d, s, t) for n, a, t, d in grid for s in seeds}, teachers)
        found = {(n, a, t, d, s): students[_Model(n, a, d, s, t)] for n, a, t, d in grid for s in seeds}

    sweep = _frame(found, importances, amplitude)
    if not sweep.converged.all():
        warnings.warn(
            f"{(~sweep.converged).sum()} of {len(sweep)} losses were still falling by more than tol={numbers['tol']:g} "
            f"a round after {numbers['n_steps'] * numbers['max_rounds']} steps; raise max_rounds or n_steps.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return sweep


def summarize_sweep(sweep: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and best of the seeds at every point of a sweep.

    Parameters
    ----------
    sweep : DataFrame
        What `toy_sweep` returned.

    Returns
    -------
    summary : DataFrame
        One row for each configuration and width, with ``floor`` (mean over seeds), ``floor_std``,
        ``floor_best``, ``standard_error`` (of the mean, from seeds and samples),
        ``sampling_error`` (of a single floor, from samples alone), ``kept`` and ``dropped_share``
        (means), ``n_seeds`` and ``total``; with a teacher as the target also ``data_floor``,
        ``data_floor_std`` and ``data_floor_best``.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> from geofloor.toy import summarize_sweep, toy_sweep
    >>> sweep = toy_sweep(10, [3], 0.9, teacher_widths=None, n_seeds=4, n_eval_samples=8192)
    >>> summary = summarize_sweep(sweep)
    >>> bool(summary.floor_best[0] <= summary.floor[0])
    True
    """
    check_object("sweep", sweep, pd.DataFrame, "give what toy_sweep returned")
    missing = {"n_features", "alpha", "width", "floor", "standard_error", "kept", "total"} - set(sweep.columns)
    if missing:
        raise ValueError(f"sweep has no column {sorted(missing)}; give what toy_sweep returned.")
    groups = sweep.groupby([key for key in KEYS if key in sweep.columns], sort=True)
    columns = {
        "floor": groups.floor.mean(),
        "floor_std": groups.floor.std(),
        "floor_best": groups.floor.min(),
        # The seeds share their samples, so that the samples' part does not fall with their number.
        "standard_error": np.sqrt(groups.floor.var().fillna(0.0) / groups.size() + groups.standard_error.mean() ** 2),
        "sampling_error": groups.standard_error.mean(),
        "kept": groups.kept.mean(),
        "n_seeds": groups.size(),
        "total": groups.total.first(),
    }
    if "dropped_share" in sweep.columns:
        columns["dropped_share"] = groups.dropped_share.mean()
    if "data_floor" in sweep.columns:
        columns["data_floor"] = groups.data_floor.mean()
        columns["data_floor_std"] = groups.data_floor.std()
        columns["data_floor_best"] = groups.data_floor.min()
    return pd.DataFrame(columns).reset_index()


def predict_sweep(summary: pd.DataFrame, predictors: Mapping[str, Callable[[int, float], Any]]) -> pd.DataFrame:
    """Put predicted floors beside the measured ones.

    Parameters
    ----------
    summary : DataFrame
        What `summarize_sweep` returned.
    predictors : mapping of str to callable
        For each new column, a function of the number of features and the sparsity that returns a
        fitted predictor.

    Returns
    -------
    summary : DataFrame
        A copy with the new columns.

    Raises
    ------
    ValueError
        If a name is that of a column already, or a column is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import FloorPredictor
    >>> from geofloor.toy import predict_sweep, summarize_sweep, toy_sweep
    >>> def eq2(n, alpha):
    ...     return FloorPredictor(alpha).fit(1 / np.arange(1, n + 1), second_moments=np.full(n, (1 - alpha) / 3))
    >>> sweep = toy_sweep(10, [3], 0.9, teacher_widths=None, n_seeds=2, n_eval_samples=8192)
    >>> predict_sweep(summarize_sweep(sweep), {"Eq. 2": eq2})["Eq. 2"].round(5).tolist()
    [0.0]
    """
    check_object("summary", summary, pd.DataFrame, "give what summarize_sweep returned")
    check_object("predictors", predictors, Mapping, "give a dict of functions by the name of the new column")
    missing = sorted({"n_features", "alpha", "width"} - set(summary.columns))
    if missing:
        raise ValueError(f"summary has no column {missing}; give what summarize_sweep returned.")
    for name, make in predictors.items():
        if not callable(make):
            raise TypeError(f"predictors[{name!r}]={shown(make)} is no function; give one of n_features and alpha.")
    taken = sorted(set(predictors) & set(summary.columns))
    if taken:
        raise ValueError(f"predictors has the names {taken}, which are columns of the summary; use others.")
    result = summary.copy()
    configurations = summary[["n_features", "alpha"]].drop_duplicates()
    for name, make in predictors.items():
        floors = np.full(len(summary), np.nan)
        for n, alpha in configurations.itertuples(index=False):
            rows = ((summary.n_features == n) & (summary.alpha == alpha)).to_numpy()
            floors[rows] = make(int(n), float(alpha)).predict(summary.width.to_numpy()[rows])
        result[name] = floors
    return result


class SweepError(RuntimeError):
    """Parts of a sweep failed.

    Attributes
    ----------
    finished : DataFrame
        Rows of the models whose parts are finished, with ``teacher_width`` 0 for those trained on data.
    """

    finished: pd.DataFrame


def _grid(
    n_features: Any, widths: Any, alphas: Any, teacher_widths: Any, target: str
) -> list[tuple[int, float, int, int]]:
    """Every (n_features, alpha, teacher_width, width), checked; teacher_width is 0 where there is none."""
    counts, sparsities = _values("n_features", n_features), _values("alphas", alphas, whole=False)
    teachers = [0] if teacher_widths is None else _values("teacher_widths", teacher_widths)
    if teacher_widths is None and (widths is None or target == "teacher"):
        needed = "widths=None" if widths is None else "target='teacher'"
        raise ValueError(f"teacher_widths=None with {needed}: give the teachers' widths.")
    asked = None if widths is None else _values("widths", widths)
    for n in counts:
        for name, several in (("widths", asked), ("teacher_widths", None if teacher_widths is None else teachers)):
            for width in several or ():
                check_width(name, width, n)
    if asked is not None and teacher_widths is not None and max(asked) > max(teachers):
        raise ValueError(
            f"widths holds {max(asked)}, which is above every teacher's width of {teachers}: a student is at most as "
            "wide as its teacher. Leave it out, add a wider teacher, or give teacher_widths=None."
        )
    grid = [
        (n, alpha, teacher, width)
        for n, alpha, teacher in itertools.product(counts, sparsities, teachers)
        for width in (asked if asked is not None else range(1, teacher + 1))
        if teacher_widths is None or width <= teacher
    ]
    return list(dict.fromkeys(grid))


def _values(name: str, values: Any, *, whole: bool = True) -> list[Any]:
    """Read one number or several: counts of at least 1, or else sparsities."""
    plain = np.atleast_1d(np.asarray(plain_array(values, name), dtype=object)).tolist()
    if not plain:
        raise ValueError(f"{name} is empty, so that the grid has no point; give at least one value.")
    if whole:
        return [check_number(name, value, 1, whole=True) for value in plain]
    return [check_number(name, value, 0, 1, open_high=True) for value in plain]


class _Run:
    """Trains a set of models part by part, in parallel, keeping what is finished."""

    def __init__(
        self,
        settings: dict[str, Any],
        importances: dict[int, list[float]],
        models_per_batch: int,
        checkpoint_dir: str | os.PathLike[str] | None,
        n_jobs: int | None,
        device: str,
        verbose: int,
    ) -> None:
        self.settings, self.importances, self.models_per_batch = settings, importances, models_per_batch
        self.directory = None if checkpoint_dir is None else check_path("checkpoint_dir", checkpoint_dir)
        self.n_jobs, self.device, self.verbose = n_jobs, device, verbose
        self.finished: dict[_Model, dict[str, Any]] = {}

    def __call__(
        self, models: set[_Model], teachers: Mapping[_Model, dict[str, Any]], *, keep_parameters: bool = False
    ) -> dict[_Model, dict[str, Any]]:
        """Results by model: numbers and, if asked for, ``parameters`` of shape (1 + width, n_features)."""
        parts = [
            _Part(
                tuple(part),
                self.settings,
                [self.importances[model.n_features] for model in part],
                [teachers[_teacher_of(model)]["parameters"] for model in part if model.teacher_width],
                self.device,
                self.directory,
            )
            for part in _parts(models, self.models_per_batch, resolve_device(self.device).type)
        ]
        results: dict[_Model, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        pending = list(range(len(parts)))
        with progress_bar("toy sweep", total=len(models), unit="model", verbose=self.verbose) as bar:

            def collect(indices: Sequence[int], n_jobs: int | None) -> None:
                for index, rows, failure in _outcomes(parts, indices, n_jobs):
                    pending.remove(index)
                    if rows:  # which a full disk may have kept from being written
                        for row in [] if keep_parameters else rows:
                            del row["parameters"]
                        found = dict(zip(parts[index].models, rows, strict=True))
                        results.update(found)
                        self.finished.update(found)
                        bar.update(len(found))
                    if failure is not None:
                        failures[index] = failure

            try:
                collect(list(pending), self.n_jobs)
            except BrokenExecutor as error:  # joblib's own processes; Dask runs lost tasks again by itself
                warnings.warn(
                    f"A worker of the sweep died ({str(error).splitlines()[0]}); its {len(pending)} unfinished "
                    "parts are run again, one at a time.",
                    UserWarning,
                    stacklevel=3,
                )
                for index in list(pending):
                    try:
                        collect([index], 2)  # a process of its own, which may die as well
                    except BrokenExecutor as again:
                        failures[index] = f"its worker died: {str(again).splitlines()[0]}"
        if failures:
            self._raise(parts, failures)
        return results

    def _raise(self, parts: Sequence[_Part], failures: Mapping[int, str]) -> None:
        lost = sum(len(parts[index].models) for index in failures)
        index, reason = next(iter(failures.items()))
        first = parts[index].models[0]
        kept = (
            f"The others are kept in checkpoint_dir='{self.directory}': call toy_sweep again to train only these. All "
            "that are trained are in this error's attribute `finished`."
            if self.directory is not None
            else "The others are in this error's attribute `finished`; with checkpoint_dir a sweep can be resumed."
        )
        error = SweepError(
            f"{len(failures)} of {len(parts)} parts failed, with {lost} models; that of {first}: {reason} {kept}"
        )
        found = {(m.n_features, m.alpha, m.teacher_width, m.width, m.seed): row for m, row in self.finished.items()}
        error.finished = _frame(found, self.importances, self.settings["amplitude"]) if found else pd.DataFrame()
        raise error


class _Part(NamedTuple):
    """What one worker does at a time."""

    models: tuple[_Model, ...]
    settings: dict[str, Any]
    importances: list[list[float]]
    teachers: list[np.ndarray]
    device: str
    directory: Path | None


def _parts(models: Iterable[_Model], size: int, device: str) -> list[list[_Model]]:
    """Models of one padded shape together, in parts of at most `size`, the most expensive parts first."""
    most_features = _MOST_FEATURES.get(device, _MOST_FEATURES["cpu"])
    parts: list[list[_Model]] = []
    by_shape = sorted(models, key=lambda model: (_shape(model), model))
    for _, group in itertools.groupby(by_shape, key=_shape):
        alike = list(group)
        n_parts = math.ceil(len(alike) / min(size, max(1, most_features // _shape(alike[0])[0])))
        parts += [alike[len(alike) * i // n_parts : len(alike) * (i + 1) // n_parts] for i in range(n_parts)]
    return sorted(parts, key=lambda part: -len(part) * math.prod(_shape(part[0])[:2]))


def _shape(model: _Model) -> tuple[int, int, int]:
    """Padded features, rows and teacher's rows: a function of the model alone, so that its bits are as well."""

    def up(value: int, step: int) -> int:
        return math.ceil(value / step) * step

    return up(model.n_features, 8), up(1 + model.width, 4), model.teacher_width and up(1 + model.teacher_width, 4)


def _teacher_of(model: _Model) -> _Model:
    return _Model(model.n_features, model.alpha, model.teacher_width, model.seed)


def _outcomes(parts: Sequence[_Part], indices: Sequence[int], n_jobs: int | None) -> Iterable[Any]:
    """Results of `_run_part`, as they come where the backend can do that."""
    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:  # those of Ray and multiprocessing return all results at once
        parallel = Parallel(n_jobs=n_jobs, batch_size=1)
    return parallel(delayed(_run_part)(index, parts[index]) for index in indices)


def _run_part(index: int, part: _Part) -> tuple[int, list[dict[str, Any]], str | None]:
    """Results of a part, read if it is finished; a failure is returned, so that the other parts go on."""
    path = None
    specification = {
        "settings": part.settings,
        "models": [list(model) for model in part.models],
        "importances": part.importances,
    }
    if part.directory is not None:
        text = json.dumps(specification, sort_keys=True)
        path = part.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
        if path.exists():
            remove_left_behind(path)
            tensors, made_with = read_tensors(path, kind=_FILE)
            with refusing(path):
                if made_with != json.loads(text):
                    raise ValueError("it is the part of another sweep or of other models")
                _check_results(part, tensors)
            return index, _rows(part, tensors), None
    try:
        tensors = _train_part(part)
    except (ValueError, RuntimeError, MemoryError) as error:
        return index, [], f"{type(error).__name__}: {error}"
    failure = None
    if path is not None:
        try:
            write_tensors(path, tensors, kind=_FILE, metadata=specification)
        except OSError as error:
            failure = f"it is trained, but can't be kept: {type(error).__name__}: {error}"
    return index, _rows(part, tensors), failure


def _check_results(part: _Part, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse results that no training of these models can have."""
    n_padded, n_rows, n_teacher_rows = _shape(part.models[0])
    numbers = ["floor", "standard_error", "dropped_share"]
    if n_teacher_rows:
        numbers += ["data_floor", "data_standard_error"]
    models = (len(part.models),)
    check_tensors(
        tensors,
        {
            **dict.fromkeys(numbers, (torch.float64, models)),
            "kept": (torch.int64, models),
            "n_steps": (torch.int64, models),
            "converged": (torch.bool, models),
            "parameters": (torch.float32, (*models, n_rows, n_padded)),
        },
    )
    most_steps = part.settings["n_steps"] * part.settings["max_rounds"]
    least = {**dict.fromkeys(numbers, 0), "kept": 0, "n_steps": 1}
    most = {"kept": torch.tensor([model.n_features for model in part.models]), "n_steps": most_steps}
    wrong = [name for name, low in least.items() if bool((tensors[name] < low).any())]
    wrong += [name for name, high in most.items() if bool((tensors[name] > high).any())]
    if wrong:
        raise ValueError(f"no model has such values of {', '.join(wrong)}")


def _rows(part: _Part, tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    parameters = arrays.pop("parameters")
    return [
        {name: values[i].item() for name, values in arrays.items()}
        | {"parameters": parameters[i, : 1 + model.width, : model.n_features].copy()}
        for i, model in enumerate(part.models)
    ]


def _train_part(part: _Part) -> dict[str, torch.Tensor]:
    """Train the models of a part and measure them."""
    models, settings = part.models, part.settings
    device = resolve_device(part.device)
    n_rows, n_teacher_rows = _shape(models[0])[1], _shape(models[0])[2]
    n_padded = _shape(models[0])[0]
    configurations = sorted({(model.n_features, model.alpha) for model in models})
    entropy = settings["entropy"]
    streams = [
        DistributionStream(SparseFeatures(n, alpha, settings["amplitude"]), (entropy, _SAMPLES, n, *_bits(alpha)))
        for n, alpha in configurations
    ]
    source = [configurations.index((model.n_features, model.alpha)) for model in models]
    units = np.array([max(weights) for weights in part.importances])
    starts = [
        initial_parameters(model.n_features, model.width, np.random.default_rng(_start_entropy(entropy, model)))
        for model in models
    ]
    relative = [np.array(weights) / unit for weights, unit in zip(part.importances, units, strict=True)]
    scales = np.array([streams[s].scale for s in source])
    teachers = None
    if part.teachers:
        teachers = stacked(part.teachers, (n_teacher_rows, n_padded), device)
    stack = Stack(
        parameters=stacked(starts, (n_rows, n_padded), device),
        importances=stacked(relative, (n_padded,), device),
        source=torch.tensor(source, device=device),
        empty_probability=torch.tensor([streams[s].empty_probability for s in source], dtype=torch.float32).to(device),
        teacher=teachers,
    )
    with one_thread():
        trained = train(
            stack,
            streams,
            n_steps=settings["n_steps"],
            max_rounds=settings["max_rounds"],
            tol=settings["tol"],
            batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
        )
        stack = stack._replace(parameters=trained.parameters)
        evaluation, on_data = evaluate(stack, streams, settings["n_eval_samples"])
    factor = units * scales**2
    # Parameters stay on the scale of training, which is the same for a student and its teacher.
    kept = is_kept(trained.parameters[:, 1:].cpu().numpy())
    losses = stack.importances.double().cpu().numpy() * (on_data or evaluation).feature_errors
    result = {
        "floor": evaluation.loss * factor,
        "standard_error": evaluation.standard_error * factor,
        "kept": kept.sum(axis=1),
        "dropped_share": np.where(kept, 0.0, losses).sum(axis=1) / np.maximum(losses.sum(axis=1), 1e-300),
        "n_steps": trained.n_steps,
        "converged": trained.converged,
    }
    if on_data is not None:
        result["data_floor"] = on_data.loss * factor
        result["data_standard_error"] = on_data.standard_error * factor
    return {name: torch.from_numpy(np.asarray(values)) for name, values in result.items()} | {
        "parameters": trained.parameters.cpu()
    }


def _bits(alpha: float) -> tuple[int, int]:
    """The number itself, as the two words that a seed can take."""
    word = int(np.float64(alpha).view(np.uint64))
    return word >> 32, word & 0xFFFFFFFF


def _start_entropy(entropy: int, model: _Model) -> tuple[int, ...]:
    return (entropy, _START, model.n_features, *_bits(model.alpha), model.width, model.seed, model.teacher_width)


def _frame(
    found: Mapping[tuple[int, float, int, int, int], Mapping[str, Any]],
    importances: Mapping[int, Sequence[float]],
    amplitude: str,
) -> pd.DataFrame:
    """Rows in the order of the grid, without the parameters."""
    totals = {
        (n, alpha): float(np.dot(importances[n], SparseFeatures(n, alpha, amplitude).second_moments))
        for n, alpha in {(key[0], key[1]) for key in found}
    }
    frame = pd.DataFrame(
        [
            dict(zip([*KEYS, "seed"], key, strict=True))
            | {name: value for name, value in row.items() if name != "parameters"}
            | {"total": totals[key[0], key[1]]}
            for key, row in found.items()
        ]
    )
    if not frame.teacher_width.any():
        frame = frame.drop(columns="teacher_width")
    return frame[[column for column in COLUMNS if column in frame.columns]]
