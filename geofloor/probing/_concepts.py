"""Linear probes of hidden states: for concepts, and for single features of a sparse autoencoder."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from joblib import Parallel, delayed
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit, check_cv
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags, check_array, check_random_state, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from geofloor._validation import (
    check_array_of_numbers,
    check_csr,
    check_flag,
    check_number,
    check_numeric,
    check_object,
    plain_array,
    shown,
)

_BATCH_ROWS = 8192
_LARGEST = 1e150  # of a state; squares must not overflow
_RANKED_VALUES = 2**22  # predictions of firing that are ranked at a time
_MIN_FIRINGS = 10  # in the training and in the validation rows, for a feature to have a say in the strength
_MOST_JOBS = 2**20
_LARGEST_SEED = 2**31 - 1


class ConceptProbe(ClassifierMixin, BaseEstimator):
    """Probe hidden states for a concept: standardisation and logistic regression, tested on held-out examples.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the strength of the squared penalty, as in `LogisticRegression`.
    cv : int, cross-validation generator or iterable of (train, test), default=None
        How examples are held out. None takes `test_size` of them once, with the classes' shares
        kept; a number of folds, or a splitter with disjoint test sets, has more or all of them tested.
    test_size : float, default=0.2
        Share held out where `cv` is None; between 0 and 1.
    max_iter : int, default=1000
        Most iterations of the logistic regression.
    confidence_level : float, default=0.95
        Level of `accuracy_interval_`, between 0 and 1.
    random_state : int, RandomState instance or None, default=None
        Seed of the split where `cv` is None or a number.

    Attributes
    ----------
    accuracy_ : float
        Share of the held-out examples classified correctly, by probes that had not seen them.
    accuracy_interval_ : tuple of (float, float)
        Wilson interval of the accuracy.
    test_indices_ : ndarray of shape (n_test,), int64
        The held-out examples, ascending.
    correct_ : ndarray of shape (n_test,), bool
        Whether each of them was classified correctly.
    estimator_ : Pipeline
        Scaler and logistic regression fitted on all examples, which `predict` uses.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    n_iter_ : int
        Iterations of the logistic regression on all examples.
    n_features_in_ : int
        Width of the hidden states.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the dimensions, if `fit` was given a DataFrame with names.

    See Also
    --------
    compare_probes : Paired test of two probes.
    probe_table : Several concepts and models.

    Notes
    -----
    Section 7.1 of [1]_ has mean-pooled states of one layer, 80% of the examples to fit on and the others
    to test on. Classes are weighted so that each counts as much as any other in the fit; accuracies
    are not weighted.

    The interval is that of independent examples. Examples from one document are not, and folds
    share most of what they are fitted on, so that with either it is somewhat too narrow.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import ConceptProbe
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 100)
    >>> states = rng.normal(size=(200, 8)) + y[:, None]
    >>> probe = ConceptProbe(random_state=0).fit(states, y)
    >>> len(probe.correct_), bool(probe.accuracy_ == probe.correct_.mean())
    (40, True)
    >>> low, high = probe.accuracy_interval_
    >>> bool(low < probe.accuracy_ < high)
    True
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        cv: Any = None,
        test_size: float = 0.2,
        max_iter: int = 1000,
        confidence_level: float = 0.95,
        random_state: Any = None,
    ) -> None:
        self.C = C
        self.cv = cv
        self.test_size = test_size
        self.max_iter = max_iter
        self.confidence_level = confidence_level
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike, *, groups: ArrayLike | None = None) -> ConceptProbe:
        """Fit and test a probe on held-out examples, then fit it on all of them.

        Parameters
        ----------
        X : {array-like, CSR} of shape (n_examples, width)
            Hidden states, one row an example, such as `ActivationExtractor` gives with
            ``pooling="mean"``. Sparse ones, such as codes, are scaled and not centred.
        y : array-like of shape (n_examples,)
            Labels.
        groups : array-like of shape (n_examples,), default=None
            What examples belong together, such as the file they are from: no group is in both the
            training and the test examples. With a number of folds or none, classes keep their shares
            about; a splitter gets the groups.

        Returns
        -------
        self : ConceptProbe
            The fitted probe.

        Raises
        ------
        ValueError
            If a parameter is out of range, states are not finite, there is one class only, a class is too
            small to be split, or an example is in two test sets.
        """
        self._check_parameters()
        X, y = validate_data(
            self, _checked_rows(X, "X"), plain_array(y, "y"), accept_sparse="csr", dtype=[np.float64, np.float32]
        )
        _check_squares(X, "X")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y has 1 class, {self.classes_[0]!r}; a probe tells at least two classes apart.")
        labels = np.asarray(y)
        splits = self.split(labels, groups=groups)
        tested, correct = [], []
        for train, test in splits:
            predicted = self._pipeline(X).fit(X[train], labels[train]).predict(X[test])
            tested.append(test)
            correct.append(predicted == labels[test])
        indices = np.concatenate(tested)
        order = np.argsort(indices, kind="stable")
        self.test_indices_, self.correct_ = indices[order].astype(np.int64), np.concatenate(correct)[order]
        if (np.diff(self.test_indices_) == 0).any():
            raise ValueError(f"cv={self.cv!r} tests an example twice; use a splitter whose test sets are disjoint.")
        self.accuracy_ = float(self.correct_.mean())
        self.accuracy_interval_ = _wilson(self.correct_, self.confidence_level)
        self.estimator_ = self._pipeline(X).fit(X, y)
        self.n_iter_ = int(np.max(self.estimator_[-1].n_iter_))
        return self

    def split(self, y: ArrayLike, *, groups: ArrayLike | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Training and test examples, as `fit` chooses them for these labels.

        Parameters
        ----------
        y : array-like of shape (n_examples,)
            Labels.
        groups : array-like of shape (n_examples,), default=None
            What examples belong together.

        Returns
        -------
        splits : list of (ndarray, ndarray)
            Indices of training and test examples, for each part of the examples that is tested.

        Raises
        ------
        ValueError
            If a class, or the number of groups, is too small to be split.
        """
        self._check_parameters()
        y = np.asarray(plain_array(y, "y"))
        if y.ndim == 0:
            raise ValueError(f"y={shown(y)} is no array of labels; give one for each example.")
        if groups is not None:
            groups = np.asarray(plain_array(groups, "groups"))
            if groups.shape not in ((len(y),), (len(y), 1)):
                raise ValueError(f"groups has shape {groups.shape} for {len(y)} labels; give one value for each.")
            groups = groups.ravel()
            if groups.dtype.kind == "O" and any(group is None for group in groups):
                raise ValueError("groups holds None; give one value for each example, which can be sorted.")
        splitter = self.cv
        if splitter is None and groups is None:
            splitter = StratifiedShuffleSplit(1, test_size=self.test_size, random_state=self.random_state)
        elif splitter is None or (groups is not None and isinstance(splitter, Integral)):
            n_folds = max(round(1 / self.test_size), 2) if splitter is None else int(splitter)
            splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=self.random_state)
        elif isinstance(splitter, Integral):
            splitter = check_cv(int(splitter), y, classifier=True, shuffle=True, random_state=self.random_state)
        else:
            splitter = check_cv(_checked_splitter(splitter), y, classifier=True)
        splits = list(splitter.split(np.zeros((len(y), 1)), y, groups))
        return splits[:1] if self.cv is None else splits

    def predict(self, X: Any) -> np.ndarray:
        """Label of each example.

        Parameters
        ----------
        X : {array-like, CSR} of shape (n_examples, width)
            Hidden states.

        Returns
        -------
        labels : ndarray of shape (n_examples,)
            The most probable class of each.
        """
        X = self._checked(X)
        return self.estimator_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class.

        Parameters
        ----------
        X : {array-like, CSR} of shape (n_examples, width)
            Hidden states.

        Returns
        -------
        probabilities : ndarray of shape (n_examples, n_classes)
            In the order of `classes_`. Classes count the same in the fit, so these are probabilities where
            they are equally frequent.
        """
        X = self._checked(X)
        return self.estimator_.predict_proba(X)

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        X = _checked_rows(X, "X")
        if sp.issparse(X) and self.estimator_[0].with_mean:
            raise ValueError("X is a sparse matrix, and the probe was fitted to a dense one; give X.toarray().")
        return validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)

    def _pipeline(self, X: Any) -> Pipeline:
        return make_pipeline(
            StandardScaler(with_mean=not sp.issparse(X)),
            LogisticRegression(C=float(self.C), class_weight="balanced", max_iter=int(self.max_iter)),
        )

    def _check_parameters(self) -> None:
        check_number("C", self.C, 0, open_low=True)
        check_number("max_iter", self.max_iter, 1, whole=True)
        for name in ("test_size", "confidence_level"):
            check_number(name, getattr(self, name), 0, 1, open_low=True, open_high=True)
        if isinstance(self.cv, Integral) and self.cv < 2:
            raise ValueError(f"cv={self.cv!r} must be at least 2 folds, a splitter, or None for one split.")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _checked_splitter(cv: Any) -> Any:
    if hasattr(cv, "get_n_splits"):
        return cv
    pairs = list(cv) if isinstance(cv, Iterable) and not isinstance(cv, np.ndarray) else []
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"cv={shown(cv)} must be a number of folds, a splitter, pairs of training and test indices, or None."
        )
    return pairs


def _checked_rows(values: Any, name: str) -> Any:
    """Refuse what scikit-learn would misread or follow out of its memory."""
    check_csr(values, name)
    return check_numeric(values, name)


def _check_squares(values: Any, name: str) -> None:
    largest = float(np.abs(values.data if hasattr(values, "nnz") else values).max(initial=0.0))
    if largest > _LARGEST:
        raise ValueError(f"{name} holds {largest:.3g}, which is too large to square; scale it.")


def _wilson(correct: np.ndarray, level: float) -> tuple[float, float]:
    low, high = proportion_confint(int(correct.sum()), len(correct), alpha=1 - level, method="wilson")
    return float(low), float(high)


class ProbeComparison(NamedTuple):
    """How a probe fares beside another on the same held-out examples.

    Attributes
    ----------
    change : float
        Its accuracy less that of the reference.
    p_value : float
        Of the exact test by McNemar that both have the same accuracy.
    n_gained : int
        Examples that only it classifies correctly.
    n_lost : int
        Examples that only the reference classifies correctly.
    """

    change: float
    p_value: float
    n_gained: int
    n_lost: int


def compare_probes(probe: ConceptProbe, reference: ConceptProbe) -> ProbeComparison:
    """Compare the accuracies of two probes of the same examples by a paired test.

    Parameters
    ----------
    probe : ConceptProbe
        A fitted probe, such as that of a student.
    reference : ConceptProbe
        A probe fitted on the same examples' states in another model, with the same split: give both
        the same integer as `random_state`.

    Returns
    -------
    comparison : ProbeComparison
        Change of the accuracy, the exact p-value, and the examples that it rests on.

    Raises
    ------
    ValueError
        If the two were tested on different examples.

    Notes
    -----
    Only examples that one probe has right and the other wrong tell the two apart: under equal
    accuracies each of these is as likely to be a gain as a loss, which is a binomial test [1]_.

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
    return _comparison(probe.correct_, reference.correct_)


def _comparison(correct: np.ndarray, reference: np.ndarray) -> ProbeComparison:
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
        Hidden states of each model, or for each model a mapping of concepts to the states of their
        examples.
    concepts : mapping of str to array-like of shape (n_examples,)
        Labels for each concept; or a tuple of indices and labels, where a concept has labels for those
        rows of the states only, counted from 0; or what `load_concepts` and `pile_concepts` return, a mapping with
        ``labels`` and perhaps ``groups``.
    reference : str or None, default="teacher"
        The model that the others are compared with; None compares none.
    probe : ConceptProbe, default=None
        Its parameters are those of all probes; by default ``ConceptProbe(random_state=0)``.
    n_jobs : int, default=None
        Probes fitted at a time, as in joblib.

    Returns
    -------
    table : DataFrame
        One row a concept and model, in the order given, with the columns

        - ``concept``, ``model``, ``width`` of its states, ``n_test``: held-out examples;
        - ``accuracy``, ``low``, ``high``: accuracy on them, and its confidence interval;
        - ``change``: accuracy less that of the reference, NaN without one;
        - ``p_value``: of the exact paired test by McNemar, as in `compare_probes`; NaN for the reference.
          It is not corrected for the number of rows.

    Raises
    ------
    ValueError
        If there is no model or concept, the reference is not among the models, a model lacks a concept,
        numbers of examples differ, or an index is no row of the states; and as `ConceptProbe.fit`.

    See Also
    --------
    geofloor.displays.ProbeHeatmapDisplay : Draws the table.

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
        for y, splits, rows in [_labelled(concept, given, template)]
        for model, each in states.items()
        for X in [_states_of(each, model, concept, rows, len(y))]
    ]
    fitted = Parallel(n_jobs=n_jobs)(
        delayed(clone(template).set_params(cv=splits).fit)(X, y) for _, _, X, y, splits in tasks
    )
    probes = {(concept, model): each for (concept, model, *_), each in zip(tasks, fitted, strict=True)}
    return pd.DataFrame(
        [
            _probe_row(concept, model, each, None if reference is None else probes[concept, reference])
            for (concept, model), each in probes.items()
        ]
    )


def _labelled(
    concept: str, given: Any, probe: ConceptProbe
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
    """Labels, splits and rows of a concept; the splits are drawn once, so that all models share them."""
    groups = rows = None
    name = f"concepts[{concept!r}]"
    if isinstance(given, Mapping):
        if "labels" not in given:
            raise ValueError(f"{name} has no labels, only {list(given)}; give them under 'labels'.")
        given, groups = given["labels"], given.get("groups")
    elif isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"{name} is a tuple of {len(given)}; give (indices, labels).")
        rows, given = _indices(given[0], f"the indices of {name}"), given[1]
    y = np.asarray(plain_array(given, name))
    if y.ndim != 1:
        raise ValueError(f"{name} has labels of shape {y.shape}; give one dimension.")
    if rows is not None and len(rows) != len(y):
        raise ValueError(f"{name} has {len(rows)} indices for {len(y)} labels; give one for each.")
    return y, probe.split(y, groups=groups), rows


def _indices(values: Any, name: str) -> np.ndarray:
    """Read row or column numbers, counted from 0."""
    numbers = np.asarray(plain_array(values, name))
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a vector of whole numbers; those of a mask are numpy.flatnonzero(mask).")
    if numbers.min() < 0 or numbers.max() > np.iinfo(np.intp).max:
        raise ValueError(f"{name} reach from {numbers.min()} to {numbers.max()}; count from 0.")
    return numbers.astype(np.intp)


def _states_of(given: Any, model: str, concept: str, rows: np.ndarray | None, n_examples: int) -> Any:
    if isinstance(given, Mapping):
        if concept not in given:
            raise ValueError(f"states[{model!r}] has no concept {concept!r}, only {list(given)}.")
        given = given[concept]
    X = _states(given, f"states[{model!r}]")
    if rows is not None and rows.max() >= X.shape[0]:
        raise ValueError(f"concepts[{concept!r}] has the index {rows.max()}, and states[{model!r}] {X.shape[0]} rows.")
    X = X if rows is None else X[rows]
    if X.shape[0] != n_examples:
        raise ValueError(f"states[{model!r}] has {X.shape[0]} rows for {n_examples} labels of {concept!r}.")
    return X


def _states(given: Any, name: str) -> Any:
    """Take states whose rows can be read by number: arrays, memory maps and stores as they are, all else as arrays."""
    if sp.issparse(given):
        check_csr(given, name)
        rows: Any = given
        return rows.tocsr()
    plain = plain_array(given, name)
    if len(getattr(plain, "shape", ())) == 2 and not (isinstance(plain, np.ndarray) or hasattr(plain, "columns")):
        return plain
    array = np.asarray(check_numeric(plain, name))
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; give two dimensions, one row for each example.")
    return array if array.dtype.kind in "biuf" else check_array_of_numbers(array, name, ndim=2)


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


# Single features


class _Moments(NamedTuple):
    """Sums over rows of states x, less a constant shift, and of codes z."""

    n: int
    x: np.ndarray  # (width,)
    xx: np.ndarray  # (width, width)
    z: np.ndarray  # (n_features,)
    zz: np.ndarray  # (n_features,)
    xz: np.ndarray  # (width, n_features)

    def __add__(self, other: Any) -> _Moments:
        return _Moments(*(mine + its for mine, its in zip(self, other, strict=True)))

    def centred(self, mean_x: np.ndarray, mean_z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of (x − a)(x − a)ᵀ, (x − a)(z − b) and (z − b)² for these a and b."""
        xx = self.xx - np.outer(mean_x, self.x) - np.outer(self.x, mean_x) + self.n * np.outer(mean_x, mean_x)
        xz = self.xz - np.outer(mean_x, self.z) - np.outer(self.x - self.n * mean_x, mean_z)
        return xx, xz, self.zz - 2 * mean_z * self.z + self.n * mean_z**2


class _Ridge:
    """Ridge regression of all features on standardised states at once, for any strength."""

    def __init__(self, moments: _Moments) -> None:
        self.mean_x, self.mean_z = moments.x / moments.n, moments.z / moments.n
        xx, xz, _ = moments.centred(self.mean_x, self.mean_z)
        variance = np.diag(xx) / moments.n
        # A dimension that does not vary beyond rounding says nothing and is left out by a weight of zero.
        varies = variance > 1e-12 * np.maximum(variance.max(initial=0.0), np.diag(moments.xx) / moments.n)
        self.scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
        self._values, self._basis = np.linalg.eigh(xx * np.outer(self.scale, self.scale) / moments.n)
        self._targets = self._basis.T @ (xz * self.scale[:, None] / moments.n)

    def coefficients(self, strength: float) -> np.ndarray:
        """Of shape (width, n_features), for states less their mean."""
        shrunk = self._targets / (np.maximum(self._values, 0.0) + strength)[:, None]
        return (self._basis @ shrunk) * self.scale[:, None]

    def unexplained(self, strength: float, moments: _Moments) -> np.ndarray:
        """Squared error of each feature on other rows, over its squares about its mean there."""
        weights = self.coefficients(strength)
        xx, xz, zz = moments.centred(self.mean_x, self.mean_z)
        errors = zz - 2 * np.einsum("ij,ij->j", weights, xz) + np.einsum("ij,ij->j", weights, xx @ weights)
        total = moments.zz - moments.z**2 / moments.n
        varies = total > 1e-12 * moments.zz
        return np.where(varies, np.maximum(errors, 0.0) / np.where(varies, total, 1.0), np.nan)


def feature_probes(
    states: Any,
    codes: Any,
    *,
    features: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    ridges: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    test_size: float = 0.2,
    validation_size: float = 0.1,
    auc: bool = False,
    random_state: Any = None,
) -> pd.DataFrame:
    r"""Measure for each feature of a sparse autoencoder how well hidden states predict its activation.

    With the codes of a teacher and the states of a student on the same tokens, this shows which of the
    teacher's features the student still holds in a linear form, over their rank of importance.

    Parameters
    ----------
    states : array-like of shape (n_tokens, width), or mapping of str to such arrays
        Hidden states, such as a student's; several models by name are split in the same way.
    codes : {array-like, CSR} of shape (n_tokens, n_latents)
        Codes of the teacher's activations at the same tokens.
    features : array-like of int of shape (n_features,), default=None
        Latents to predict, such as ``FeatureStatistics.alive_``; by default those that fire.
    groups : array-like of shape (n_tokens,), default=None
        What tokens belong together, such as the number of their sequence: no group is both
        learned from and tested on. By default every token is drawn on its own.
    ridges : sequence of float, default=(1e-6, ..., 1)
        Strengths of the penalty to choose from, each above 0, relative to the number of tokens and the variance
        of the states.
    test_size : float, default=0.2
        Share of the tokens, or groups, that R² is measured on.
    validation_size : float, default=0.1
        Share that the strength is chosen on; the coefficients are then fitted on all but the test.
    auc : bool, default=False
        Whether to measure how well the prediction tells firing from not firing, too. This ranks the
        predictions of all features on the test tokens and takes most of the time.
    random_state : int, RandomState instance or None, default=None
        Seed of the split.

    Returns
    -------
    table : DataFrame
        One row a feature, most important first, and for each model in turn, with the columns

        - ``model``, where `states` is a mapping, and ``width`` of its states;
        - ``feature``: the latent; ``rank``: 1 for the most important one;
        - ``importance``: E[z²] over all tokens; ``firing_rate``: P(z ≠ 0);
        - ``n_test_firings``: test tokens that it fires on: with few of them R² is noise;
        - ``r2``: R² on the test tokens, about their mean, negative where the mean would be closer and NaN
          where the activation does not vary;
        - ``auc``, if asked for: area under the ROC curve for firing, NaN without both;
        - ``ridge``: the strength chosen, the same for all features of a model.

    Raises
    ------
    ValueError
        If numbers of tokens differ, values are not finite, a latent does not exist, no latent fires, a
        parameter is out of range, or there are too few tokens or groups for three parts.

    See Also
    --------
    geofloor.displays.FeatureStaircaseDisplay : Draws R² over rank, for several widths.
    FeatureStatistics : Tells which latents are alive.

    Notes
    -----
    With standardised states X and centred activations Z of n training tokens the coefficients are

    .. math:: W = (X^\top X / n + \rho I)^{-1} X^\top Z / n,

    for all features from one eigendecomposition of the width × width matrix, which serves every strength
    ρ; :math:`X^\top Z` is a product with the sparse codes. Errors follow from the same sums over the
    rows tested, so that no array of tokens × features is ever made (with `auc`, of a few features at
    a time). Sums are float64 whatever the input.

    The strength is the one with the largest mean of R² on the validation tokens over the features that
    fire ten times or more in each part, each counting the same.

    The theory has an R² of 1 to the left of F_S, the features that a student's width can keep, and of 0
    to its right [1]_. It speaks of the student's best reconstruction, though, not of a linear reading: a
    feature in superposition with others is disturbed by them, so its R² is below 1 even where it is kept.

    References
    ----------
    .. [1] Sarkar and Deka (2026), "Geometric Limits of Knowledge Distillation", arXiv:2604.04037,
       Section 8, where probes of single features are named as future work.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor.probing import feature_probes
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.random((4000, 3)) * (rng.random((4000, 3)) < 0.2) * [4, 2, 1]
    >>> student = codes[:, :2] @ rng.normal(size=(2, 2))  # has lost the third feature
    >>> table = feature_probes(student, codes, random_state=0)
    >>> table[["feature", "rank"]].T.to_numpy()
    array([[0, 1, 2],
           [1, 2, 3]])
    >>> (table.r2 > 0.99).tolist()
    [True, True, False]
    """
    test_size, validation_size, strengths = _checked_sizes(test_size, validation_size, ridges)
    auc = check_flag("auc", auc)
    codes = _checked_codes(codes)
    if isinstance(states, Mapping) and not states:
        raise ValueError("states has no model; give at least one.")
    models = {
        name: _states(each, _name_of(name))
        for name, each in (states.items() if isinstance(states, Mapping) else [(None, states)])
    }
    for name, each in models.items():
        if sp.issparse(each):
            raise ValueError(f"{_name_of(name)} is sparse; give a dense array, such as {_name_of(name)}.toarray().")
        if each.shape[:1] != codes.shape[:1] or len(each.shape) != 2:
            raise ValueError(
                f"{_name_of(name)} has shape {tuple(each.shape)}; give (n_tokens, width) for codes of {codes.shape}."
            )
    latents = _latents(codes, features)
    codes = codes[:, latents]
    parts = _parts(codes.shape[0], groups, test_size, validation_size, random_state)
    about = _feature_columns(codes, latents, parts[2])
    order = np.argsort(-about["importance"].to_numpy(), kind="stable")
    tables = []
    for name, each in models.items():
        of = _name_of(name)
        table = about.assign(width=each.shape[1], **_probe_features(each, codes, parts, strengths, auc=auc, name=of))
        table = table.iloc[order].reset_index(drop=True)
        table.insert(1, "rank", np.arange(1, len(table) + 1))
        if name is not None:
            table.insert(0, "model", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _name_of(model: Any) -> str:
    return "states" if model is None else f"states[{model!r}]"


def _probe_features(
    states: Any, codes: Any, parts: Sequence[np.ndarray], ridges: Sequence[float], *, auc: bool, name: str
) -> dict[str, Any]:
    shift = np.asarray(states[parts[0][:_BATCH_ROWS]], dtype=np.float64).mean(axis=0)  # keeps the sums of squares small
    train, validation, test = (_moments(states, codes, rows, shift) for rows in parts)
    if not all(np.isfinite(each.xx).all() for each in (train, validation, test)):
        raise ValueError(f"{name} holds values that are not finite, or too large to square; clean or scale them.")
    ridge = max(ridges, key=_validated(_Ridge(train), validation, _often(codes, parts[:2]), ridges))
    fitted = _Ridge(train + validation)
    columns = {"r2": 1.0 - fitted.unexplained(ridge, test)}
    if auc:
        columns["auc"] = _areas(states, codes, parts[2], shift + fitted.mean_x, fitted.coefficients(ridge))
    return columns | {"ridge": ridge}


def _validated(fitted: _Ridge, validation: _Moments, often: np.ndarray, ridges: Sequence[float]) -> Any:
    """Score of each strength: mean R² on the validation rows of the features that fire often enough, or of all."""
    scores = {}
    for ridge in ridges:
        r2 = 1.0 - fitted.unexplained(ridge, validation)
        chosen = r2[often & np.isfinite(r2)] if (often & np.isfinite(r2)).any() else r2[np.isfinite(r2)]
        scores[ridge] = chosen.mean() if chosen.size else 0.0
    return scores.__getitem__


def _moments(states: Any, codes: Any, rows: np.ndarray, shift: np.ndarray) -> _Moments:
    width, n_features = len(shift), codes.shape[1]
    totals = _Moments(
        0,
        np.zeros(width),
        np.zeros((width, width)),
        np.zeros(n_features),
        np.zeros(n_features),
        np.zeros((width, n_features)),
    )
    for x, z in _batches(states, codes, rows, shift):
        square = z.copy()
        square.data **= 2
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
            totals += _Moments(len(x), x.sum(axis=0), x.T @ x, _column_sums(z), _column_sums(square), (z.T @ x).T)
    return totals


def _batches(states: Any, codes: Any, rows: np.ndarray, shift: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
    for batch in gen_batches(len(rows), _BATCH_ROWS):
        chosen = rows[batch]
        yield np.asarray(states[chosen], dtype=np.float64) - shift, codes[chosen].astype(np.float64)


def _areas(states: Any, codes: Any, rows: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas under the ROC curves, a few features at a time."""
    fires, x = codes[rows].tocsc(), np.concatenate([x for x, _ in _batches(states, codes, rows, mean)])
    areas = np.full(weights.shape[1], np.nan)
    for batch in gen_batches(weights.shape[1], max(_RANKED_VALUES // len(rows), 1)):
        ranks = rankdata(x @ weights[:, batch], axis=0)
        for place, column in enumerate(ranks.T, start=batch.start):
            fired = fires.indices[fires.indptr[place] : fires.indptr[place + 1]]
            n_pairs = len(fired) * (len(rows) - len(fired))
            if n_pairs:
                areas[place] = (column[fired].sum() - len(fired) * (len(fired) + 1) / 2) / n_pairs
    return areas


def _checked_codes(codes: Any) -> Any:
    codes = _checked_rows(codes, "codes")
    checked = sp.csr_array(check_array(codes, accept_sparse="csr", dtype=[np.float32, np.float64], input_name="codes"))
    _check_squares(checked, "codes")
    if not checked.has_canonical_format or (checked.data == 0).any():
        checked = checked.copy()
        checked.sum_duplicates()
        checked.eliminate_zeros()
    return checked


def _latents(codes: Any, features: ArrayLike | None) -> np.ndarray:
    if features is None:
        latents = np.flatnonzero(np.bincount(codes.indices, minlength=codes.shape[1]))
        if not latents.size:
            raise ValueError("codes: no latent fires; there is nothing to predict.")
        return latents
    latents = _indices(features, "features")
    if latents.max() >= codes.shape[1] or len(np.unique(latents)) < len(latents):
        raise ValueError(f"features must be different numbers from 0 to {codes.shape[1] - 1}, the latents of codes.")
    return latents


def _feature_columns(codes: Any, latents: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    n_tokens, n_features = codes.shape
    squares = np.bincount(codes.indices, codes.data.astype(np.float64) ** 2, minlength=n_features)
    return pd.DataFrame(
        {
            "feature": latents,
            "importance": squares / n_tokens,
            "firing_rate": np.bincount(codes.indices, minlength=n_features) / n_tokens,
            "n_test_firings": np.bincount(codes[test].indices, minlength=n_features),
        }
    )


def _often(codes: Any, parts: Sequence[np.ndarray]) -> np.ndarray:
    counts = [np.bincount(codes[rows].indices, minlength=codes.shape[1]) for rows in parts]
    return np.min(counts, axis=0) >= _MIN_FIRINGS


def _column_sums(codes: Any) -> np.ndarray:
    return np.bincount(codes.indices, codes.data, minlength=codes.shape[1])


def _parts(
    n_tokens: int, groups: ArrayLike | None, test_size: float, validation_size: float, random_state: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train, to choose the strength and to test on, each ascending: memory maps like that."""
    if groups is None:
        of_row, n_units = np.arange(n_tokens), n_tokens
    else:
        given = np.asarray(plain_array(groups, "groups"))
        if given.shape != (n_tokens,):
            raise ValueError(f"groups has shape {given.shape} for {n_tokens} tokens; give one value for each token.")
        try:
            names, of_row = np.unique(given, return_inverse=True)
        except TypeError as error:
            raise ValueError(f"groups={shown(groups)} can't be sorted: {error}; give numbers or text.") from error
        n_units = len(names)
    n_test, n_validation = round(test_size * n_units), round(validation_size * n_units)
    if min(n_test, n_validation, n_units - n_test - n_validation) < 1:
        raise ValueError(
            f"{n_units} {'tokens' if groups is None else 'groups'} are too few for parts of {test_size:g} to test, "
            f"{validation_size:g} to validate and the rest to train on; give more."
        )
    part = np.zeros(n_units, dtype=np.int8)
    order = check_random_state(random_state).permutation(n_units)
    part[order[:n_test]], part[order[n_test : n_test + n_validation]] = 2, 1
    train, validation, test = (np.flatnonzero(part[of_row] == number) for number in range(3))
    return train, validation, test


def _checked_sizes(
    test_size: float, validation_size: float, ridges: Sequence[float]
) -> tuple[float, float, tuple[float, ...]]:
    test_size = check_number("test_size", test_size, 0, 1, open_low=True, open_high=True)
    validation_size = check_number("validation_size", validation_size, 0, 1, open_low=True, open_high=True)
    if not test_size + validation_size < 1:
        raise ValueError(f"test_size={test_size!r} and validation_size={validation_size!r} must be below 1 together.")
    strengths = check_array_of_numbers(ridges, "ridges", low=0)
    if not strengths.min() > 0:
        raise ValueError(f"ridges={shown(ridges)} must be one or more finite numbers above 0.")
    return test_size, validation_size, tuple(strengths.tolist())
