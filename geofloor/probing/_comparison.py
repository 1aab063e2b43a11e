"""Comparison of concept probes between models."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from statsmodels.stats.contingency_tables import mcnemar

from geofloor._validation import check_number, check_object, plain_array, shown
from geofloor.probing._concepts import ConceptProbe
from geofloor.probing._inputs import read_indices, read_states

_MOST_JOBS = 2**20


class ProbeComparison(NamedTuple):
    """Difference between two probes on the same held-out examples.

    Attributes
    ----------
    change : float
        Accuracy of the probe minus that of the reference.
    p_value : float
        P-value of McNemar's exact test for equal accuracies.
    n_gained : int
        Number of examples classified correctly by the probe alone.
    n_lost : int
        Number of examples classified correctly by the reference alone.
    """

    change: float
    p_value: float
    n_gained: int
    n_lost: int


def compare_probes(probe: ConceptProbe, reference: ConceptProbe) -> ProbeComparison:
    """Compare two probes on the same held-out examples by a paired test.

    Parameters
    ----------
    probe : ConceptProbe
        A fitted probe, for instance of a student.
    reference : ConceptProbe
        A probe fitted on the states of the same examples in another model, with the same split. Give
        both the same integer as `random_state`.

    Returns
    -------
    comparison : ProbeComparison
        Change of the accuracy, exact p-value, and numbers of examples gained and lost.

    Raises
    ------
    ValueError
        If the probes were tested on different examples.

    Notes
    -----
    The test uses the examples on which exactly one of the probes is right. Under equal accuracies each of
    them is a gain or a loss with probability 1/2, and the number of gains is binomial [1]_.

    References
    ----------
    .. [1] McNemar (1947), "Note on the sampling error of the difference between correlated proportions
       or percentages", Psychometrika 12.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import ConceptProbe
    >>> from geofloor.probing import compare_probes
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 100)
    >>> teacher = rng.normal(size=(200, 8)) + y[:, None]
    >>> student = teacher[:, :1] + rng.normal(size=(200, 1))
    >>> probes = [ConceptProbe(random_state=0).fit(states, y) for states in (student, teacher)]
    >>> comparison = compare_probes(*probes)
    >>> bool(comparison.change < 0), comparison.n_lost - comparison.n_gained == round(-40 * comparison.change)
    (True, True)
    """
    for name, each in (("probe", probe), ("reference", reference)):
        check_object(name, each, ConceptProbe, "give a fitted ConceptProbe")
        check_is_fitted(each)
    if not np.array_equal(probe.test_indices_, reference.test_indices_):
        raise ValueError(
            "probe and reference were tested on different examples; fit both on all examples, with the same "
            "integer as random_state or the same cv."
        )
    return _paired_test(probe.correct_, reference.correct_)


def _paired_test(correct: np.ndarray, reference: np.ndarray) -> ProbeComparison:
    gained, lost = int((correct & ~reference).sum()), int((~correct & reference).sum())
    table = [[int((correct & reference).sum()), gained], [lost, int((~correct & ~reference).sum())]]
    change = (gained - lost) / len(correct)
    return ProbeComparison(change, float(mcnemar(table, exact=True).pvalue), gained, lost)


def probe_table(
    states: Mapping[str, Any],
    concepts: Mapping[str, Any],
    *,
    reference: str | None = "teacher",
    probe: ConceptProbe | None = None,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Probe several models for several concepts, all on the same held-out examples.

    Parameters
    ----------
    states : mapping of str to array-like of shape (n_examples, width)
        Hidden states of each model. A model whose examples differ between concepts has a mapping from
        concept to states.
    concepts : mapping of str to array-like of shape (n_examples,)
        Labels for each concept. If only some rows of the states have labels, give a tuple of row
        indices, counted from 0, and labels. The result of `load_concepts` or `pile_concepts` works too:
        for each concept a mapping with ``labels`` and optionally ``groups``.
    reference : str or None, default="teacher"
        Model to compare the others with; None for no comparison.
    probe : ConceptProbe, default=None
        Probe to clone for each concept and model; by default ``ConceptProbe(random_state=0)``.
    n_jobs : int, default=None
        Number of probes fitted in parallel, as in joblib.

    Returns
    -------
    table : DataFrame
        One row per concept and model, in the order given, with the columns

        - ``concept``, ``model``, ``width`` of its states, ``n_test``: number of held-out examples;
        - ``accuracy``, ``low``, ``high``: accuracy on them, and the ends of its confidence interval at the
          level of `probe`;
        - ``change``: accuracy minus that of the reference; NaN without a reference;
        - ``p_value``: p-value of McNemar's exact test, as in `compare_probes`, not corrected for the number
          of rows; NaN for the reference.

    Raises
    ------
    ValueError
        If there is no model or concept, the reference is not among the models, a model lacks a concept,
        numbers of examples differ, or an index is outside the states; and as `ConceptProbe.fit`.

    See Also
    --------
    geofloor.displays.ProbeHeatmapDisplay : Draw the table.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.probing import probe_table
    >>> rng = np.random.default_rng(0)
    >>> y = np.tile([0, 1], 100)
    >>> teacher = rng.normal(size=(200, 8)) + y[:, None]
    >>> table = probe_table({"teacher": teacher, "student": teacher[:, :2]}, {"is odd": y})
    >>> table[["concept", "model", "width", "n_test"]]
      concept    model  width  n_test
    0  is odd  teacher      8      40
    1  is odd  student      2      40
    """
    check_object("states", states, Mapping, "give a dict of states by model")
    check_object("concepts", concepts, Mapping, "give a dict of labels by concept")
    check_object("probe", probe, (ConceptProbe, type(None)), "give a ConceptProbe, or None for the default")
    if n_jobs is not None:
        n_jobs = check_number("n_jobs", n_jobs, -_MOST_JOBS, _MOST_JOBS, whole=True)
    if not states or not concepts:
        raise ValueError(f"states has {len(states)} models and concepts {len(concepts)} concepts; give at least one.")
    if reference is not None and not (isinstance(reference, Hashable) and reference in states):
        raise ValueError(f"reference={shown(reference)} is not among the models {list(states)}; name one, or None.")
    template = ConceptProbe(random_state=0) if probe is None else probe
    tasks = [
        (concept, model, X, y, splits)
        for concept, given in concepts.items()
        for y, splits, rows in [_labeled(concept, given, template)]
        for model, each in states.items()
        for X in [_states_of(each, model, concept, rows, len(y))]
    ]
    fitted = Parallel(n_jobs=n_jobs)(
        delayed(clone(template).set_params(cv=splits, test_size=None, random_state=None).fit)(X, y)
        for _, _, X, y, splits in tasks
    )
    probes = {(concept, model): each for (concept, model, *_), each in zip(tasks, fitted, strict=True)}
    return pd.DataFrame(
        [
            _probe_row(concept, model, each, None if reference is None else probes[concept, reference])
            for (concept, model), each in probes.items()
        ]
    )


def _labeled(
    concept: str, given: Any, probe: ConceptProbe
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
    """Return labels, splits and rows of a concept; all models share these splits."""
    groups = rows = None
    name = f"concepts[{concept!r}]"
    if isinstance(given, Mapping):
        if "labels" not in given:
            raise ValueError(f"{name} has no labels, only {list(given)}; give them under 'labels'.")
        given, groups = given["labels"], given.get("groups")
    elif isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"{name} is a tuple of {len(given)}; give (indices, labels).")
        rows, given = read_indices(given[0], f"the indices of {name}"), given[1]
    y = np.asarray(plain_array(given, name))
    if y.ndim != 1:
        raise ValueError(f"{name} has labels of shape {y.shape}; give one dimension.")
    if rows is not None and len(rows) != len(y):
        raise ValueError(f"{name} has {len(rows)} indices for {len(y)} labels; give one index per label.")
    return y, probe.split(y, groups=groups), rows


def _states_of(given: Any, model: str, concept: str, rows: np.ndarray | None, n_examples: int) -> Any:
    if isinstance(given, Mapping):
        if concept not in given:
            raise ValueError(f"states[{model!r}] has no concept {concept!r}, only {list(given)}.")
        given = given[concept]
    X = read_states(given, f"states[{model!r}]")
    if rows is not None and rows.max() >= X.shape[0]:
        raise ValueError(f"concepts[{concept!r}] has the index {rows.max()}, and states[{model!r}] {X.shape[0]} rows.")
    X = X if rows is None else X[rows]
    if X.shape[0] != n_examples:
        raise ValueError(f"states[{model!r}] has {X.shape[0]} rows for {n_examples} labels of {concept!r}.")
    return X


def _probe_row(concept: str, model: str, probe: ConceptProbe, reference: ConceptProbe | None) -> dict[str, Any]:
    low, high = probe.accuracy_interval_
    change, p_value = (np.nan, np.nan) if reference is None else compare_probes(probe, reference)[:2]
    return {
        "concept": concept,
        "model": model,
        "width": probe.n_features_in_,
        "n_test": len(probe.correct_),
        "accuracy": probe.accuracy_,
        "low": low,
        "high": high,
        "change": change,
        "p_value": np.nan if probe is reference else p_value,
    }
