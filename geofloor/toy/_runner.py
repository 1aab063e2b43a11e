"""Train the models of a sweep part by part, in parallel, and keep finished parts in files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from geofloor._files.atomic import remove_left_behind
from geofloor._files.schema import refusing
from geofloor._training.checkpoints import check_tensors, read_tensors, write_tensors
from geofloor._training.devices import one_thread, resolve_device
from geofloor._training.progress import progress_bar
from geofloor._validation import check_path
from geofloor.toy._engine import DistributionStream, Stack, evaluate, initial_parameters, stacked, train
from geofloor.toy._features import SparseFeatures
from geofloor.toy._model import is_kept
from geofloor.toy._tables import sweep_frame

_FILE = "geofloor toy sweep part"


_SAMPLES, _START = 0, 1  # purposes of a seed


# Features of all models of a part: its samples stay within some hundred megabytes, on a GPU some gigabytes.
_MOST_FEATURES = {"cpu": 4096, "cuda": 65_536}


class Model(NamedTuple):
    """A model of a sweep; `teacher_width` is 0 if the data are the target."""

    n_features: int
    alpha: float
    width: int
    seed: int
    teacher_width: int = 0


class SweepError(RuntimeError):
    """Failure of parts of a sweep.

    Attributes
    ----------
    finished : DataFrame
        Rows of the models of finished parts, with ``teacher_width`` 0 for models trained on data.
    """

    finished: pd.DataFrame


class Run:
    """Train sets of models part by part, in parallel, and keep finished parts."""

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
        self.finished: dict[Model, dict[str, Any]] = {}

    def __call__(
        self, models: set[Model], teachers: Mapping[Model, dict[str, Any]], *, keep_parameters: bool = False
    ) -> dict[Model, dict[str, Any]]:
        """Return results by model: numbers and, if asked for, ``parameters`` of shape (1 + width, n_features)."""
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
        results: dict[Model, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        pending = list(range(len(parts)))
        with progress_bar("toy sweep", total=len(models), unit="model", verbose=self.verbose) as bar:

            def collect(indices: Sequence[int], n_jobs: int | None) -> None:
                for index, rows, failure in _outcomes(parts, indices, n_jobs):
                    pending.remove(index)
                    if rows:  # even if a full disk kept them from being written
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
            except BrokenExecutor as error:  # of joblib's own processes; Dask reruns lost tasks by itself
                warnings.warn(
                    f"A worker of the sweep died ({str(error).splitlines()[0]}); its {len(pending)} unfinished "
                    "parts are run again, one at a time.",
                    UserWarning,
                    stacklevel=3,
                )
                for index in list(pending):
                    try:
                        collect([index], 2)  # a process of its own, which may die too
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
            f"The others are kept in checkpoint_dir='{self.directory}': call toy_sweep again to train only these. This "
            "error's attribute `finished` holds all trained models."
            if self.directory is not None
            else "The others are in this error's attribute `finished`; with checkpoint_dir a sweep can be resumed."
        )
        error = SweepError(
            f"{len(failures)} of {len(parts)} parts failed, with {lost} models; that of {first}: {reason} {kept}"
        )
        found = {(m.n_features, m.alpha, m.teacher_width, m.width, m.seed): row for m, row in self.finished.items()}
        error.finished = sweep_frame(found, self.importances, self.settings["amplitude"]) if found else pd.DataFrame()
        raise error


class _Part(NamedTuple):
    """Models trained together by one worker, and their settings."""

    models: tuple[Model, ...]
    settings: dict[str, Any]
    importances: list[list[float]]
    teachers: list[np.ndarray]
    device: str
    directory: Path | None


def _parts(models: Iterable[Model], size: int, device: str) -> list[list[Model]]:
    """Group models of one padded shape into parts of at most `size`, the most expensive parts first."""
    most_features = _MOST_FEATURES.get(device, _MOST_FEATURES["cpu"])
    parts: list[list[Model]] = []
    by_shape = sorted(models, key=lambda model: (_shape(model), model))
    for _, group in itertools.groupby(by_shape, key=_shape):
        alike = list(group)
        n_parts = math.ceil(len(alike) / min(size, max(1, most_features // _shape(alike[0])[0])))
        parts += [alike[len(alike) * i // n_parts : len(alike) * (i + 1) // n_parts] for i in range(n_parts)]
    return sorted(parts, key=lambda part: -len(part) * math.prod(_shape(part[0])[:2]))


def _shape(model: Model) -> tuple[int, int, int]:
    """Return padded features, rows and teacher rows, from the model alone, so that its bits depend on nothing else."""

    def up(value: int, step: int) -> int:
        return math.ceil(value / step) * step

    return up(model.n_features, 8), up(1 + model.width, 4), model.teacher_width and up(1 + model.teacher_width, 4)


def _teacher_of(model: Model) -> Model:
    return Model(model.n_features, model.alpha, model.teacher_width, model.seed)


def _outcomes(parts: Sequence[_Part], indices: Sequence[int], n_jobs: int | None) -> Iterable[Any]:
    """Yield results of `_run_part` as they come, if the backend supports it."""
    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:  # Ray and multiprocessing return all results at once
        parallel = Parallel(n_jobs=n_jobs, batch_size=1)
    return parallel(delayed(_run_part)(index, parts[index]) for index in indices)


def _run_part(index: int, part: _Part) -> tuple[int, list[dict[str, Any]], str | None]:
    """Read or compute the results of a part; return a failure, so that other parts go on."""
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
    """Refuse results impossible for these models."""
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
    # Parameters stay on the scale of training, equal for a student and its teacher.
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
    """Split a float64 into two 32-bit words for a seed."""
    word = int(np.float64(alpha).view(np.uint64))
    return word >> 32, word & 0xFFFFFFFF


def _start_entropy(entropy: int, model: Model) -> tuple[int, ...]:
    return (entropy, _START, model.n_features, *_bits(model.alpha), model.width, model.seed, model.teacher_width)
