"""Sweeps of toy models over a grid of widths, sparsities, numbers of features and seeds."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning

from geofloor._files.atomic import check_writable
from geofloor._training.devices import resolve_device
from geofloor._training.seeds import draw_seed
from geofloor._validation import check_choice, check_number, check_object, plain_array
from geofloor.toy._features import SparseFeatures
from geofloor.toy._model import Importance, check_settings, check_width, resolve_importances
from geofloor.toy._runner import Model, Run
from geofloor.toy._tables import sweep_frame

_TARGETS = ("data", "teacher")
_MOST_JOBS = 2**20


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

    The defaults are the paper's sweep: 48 configurations of features, sparsity and teacher width, students
    of each width up to the teacher's, and 20 seeds.

    Parameters
    ----------
    n_features : int or sequence of int, default=(10, 20, 40)
        Numbers of features n.
    widths : sequence of int, default=None
        Widths d of the students, none wider than a teacher; None means all from 1 to the teacher's.
    alphas : float or sequence of float, default=(0.8, 0.9, 0.95, 0.99)
        Sparsities, in [0, 1).
    teacher_widths : sequence of int or None, default=(3, 5, 8, 10)
        Widths of the teachers. With ``target="data"`` they only bound the widths of students, and equal
        students of several teachers are trained once; then None, with `widths`, leaves teachers out.
    n_seeds : int, default=20
        Models at each point of the grid, from different starting points.
    importance : {"zipf", "uniform"}, float, array-like or callable, default="zipf"
        Weights of the features, as in `ToyModel`.
    amplitude : {"uniform", "exponential", "half-normal", "constant"}, default="uniform"
        Law of an active feature, as in `SparseFeatures`.
    target : {"data", "teacher"}, default="data"
        Target of students: the sample itself, or the output of a trained teacher. Each seed has its own
        teacher.
    n_steps, max_rounds, tol, batch_size, learning_rate, n_eval_samples
        As in `ToyModel`.
    models_per_batch : int, default=64
        Models per part: trained in one computation by one worker, and kept in one file. Parts of models with
        more than 64 features are smaller.
    checkpoint_dir : str, path or None, default=None
        Folder for finished parts. A sweep with the same settings resumes from them.
    n_jobs : int, default=None
        Workers, each on one core. ``joblib.parallel_config`` chooses their backend: processes, Dask, Ray or
        another.
    random_state : int, RandomState or None, default=0
        Seed of samples and starting points.
    device : str, default="auto"
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"`` or ``"mps"``.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    sweep : DataFrame
        One row per configuration, width and seed, with the columns

        - ``n_features``, ``alpha``, ``teacher_width`` (unless left out), ``width``, ``seed``;
        - ``floor``: importance-weighted squared error on fresh samples, against the target;
        - ``standard_error``: that of the floor, from the spread over samples;
        - ``kept``: features with ‖W_i‖² ≥ 1/2;
        - ``dropped_share``: share of the loss due to the other features, with the data as the target;
        - ``n_steps``, ``converged``: steps taken, and whether the loss had stopped falling;
        - ``total``: Σ I_i E[x_i²], the loss of always answering 0;
        - ``data_floor``, ``data_standard_error``: floor and error against the data, with ``target="teacher"``.

    Raises
    ------
    ValueError
        If the grid is empty, a parameter is out of range, a width exceeds the number of features or the width of
        a teacher, or a file in `checkpoint_dir` is damaged or belongs to another part.
    SweepError
        If parts of the sweep failed or could not be written; it holds the rows of the trained models.

    Warns
    -----
    ConvergenceWarning
        If losses were still falling after `max_rounds`.
    UserWarning
        If a worker died; its parts are run again.

    See Also
    --------
    summarize_sweep : Mean, spread and best of the seeds.
    predict_sweep : Put predictions beside the measured floors.
    ToyModel : A single model.

    Notes
    -----
    The models of a part share the shape of their padded arrays and nothing else. All seeds and widths of a
    configuration see the same stream of samples, and the starting point of a model depends on its own
    configuration, width and seed alone. So the result does not depend on `n_jobs`, the backend,
    `models_per_batch` or the rest of the grid; on one kind of machine it is the same to the bit. Because samples
    are shared, differences between widths and seeds are much more precise than floors.

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
    SparseFeatures(1, 0.5, amplitude)  # refuse an unknown law before any work
    if checkpoint_dir is not None:
        check_object("checkpoint_dir", checkpoint_dir, (str, os.PathLike), "give the path of a folder")
        check_writable("checkpoint_dir", Path(checkpoint_dir) / "part.safetensors")
    run = Run(settings, importances, models_per_batch, checkpoint_dir, n_jobs, device, verbose)
    seeds = range(n_seeds)
    if target == "data":
        students = run({Model(n, a, d, s) for n, a, _, d in grid for s in seeds}, {})
        found = {(n, a, t, d, s): students[Model(n, a, d, s)] for n, a, t, d in grid for s in seeds}
    else:
        teachers = run({Model(n, a, t, s) for n, a, t, _ in grid for s in seeds}, {}, keep_parameters=True)
        students = run({Model(n, a, d, s, t) for n, a, t, d in grid for s in seeds}, teachers)
        found = {(n, a, t, d, s): students[Model(n, a, d, s, t)] for n, a, t, d in grid for s in seeds}

    sweep = sweep_frame(found, importances, amplitude)
    if not sweep.converged.all():
        warnings.warn(
            f"{(~sweep.converged).sum()} of {len(sweep)} losses were still falling by more than tol={numbers['tol']:g} "
            f"per round after {numbers['n_steps'] * numbers['max_rounds']} steps; raise max_rounds or n_steps.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return sweep


def _grid(
    n_features: Any, widths: Any, alphas: Any, teacher_widths: Any, target: str
) -> list[tuple[int, float, int, int]]:
    """Check the grid and list its points (n_features, alpha, teacher_width, width), with 0 for no teacher."""
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
    if asked is not None and teacher_widths is not None and max(asked) > min(teachers):
        raise ValueError(
            f"widths holds {max(asked)}, which exceeds the width {min(teachers)} of a teacher: a student is at most as "
            "wide as its teacher. Leave one of them out, or give teacher_widths=None."
        )
    grid = [
        (n, alpha, teacher, width)
        for n, alpha, teacher in itertools.product(counts, sparsities, teachers)
        for width in (asked if asked is not None else range(1, teacher + 1))
    ]
    return list(dict.fromkeys(grid))


def _values(name: str, values: Any, *, whole: bool = True) -> list[Any]:
    """Read one number or several: counts of at least 1, or sparsities."""
    plain = np.atleast_1d(np.asarray(plain_array(values, name), dtype=object)).tolist()
    if not plain:
        raise ValueError(f"{name} is empty, so that the grid has no point; give at least one value.")
    if whole:
        return [check_number(name, value, 1, whole=True) for value in plain]
    return [check_number(name, value, 0, 1, open_high=True) for value in plain]
