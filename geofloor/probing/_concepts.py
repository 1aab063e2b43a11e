"""Linear probe of hidden states for one concept."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit, check_cv
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from statsmodels.stats.proportion import proportion_confint

from geofloor._validation import check_number, plain_array, shown
from geofloor.probing._inputs import check_rows, check_squares, read_groups

_TEST_SIZE = 0.2


class ConceptProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression on standardized hidden states, tested on held-out examples.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the strength of the squared penalty, as in `LogisticRegression`.
    cv : int, cross-validation generator or iterable of (train, test), default=None
        How to hold out examples. None holds out `test_size` of them once and keeps the shares of the
        classes. A number of folds tests every example once; a splitter must have disjoint test sets.
    test_size : float, default=None
        Share to hold out, between 0 and 1, by default 0.2. Only for ``cv=None``.
    max_iter : int, default=1000
        Maximum number of iterations of the logistic regression.
    level : float, default=0.9
        Confidence level of `accuracy_interval_`, between 0 and 1.
    random_state : int, RandomState instance or None, default=None
        Seed of the split. Not for a splitter or an iterable, which decide for themselves.

    Attributes
    ----------
    accuracy_ : float
        Share of the held-out examples classified correctly by probes that were not fitted on them.
    accuracy_interval_ : tuple of (float, float)
        Wilson interval of the accuracy.
    test_indices_ : ndarray of shape (n_test,), int64
        The held-out examples, ascending.
    correct_ : ndarray of shape (n_test,), bool
        Whether each of them was classified correctly.
    estimator_ : Pipeline
        Scaler and logistic regression fitted on all examples, used by `predict`.
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
    geofloor.probing.compare_probes : Test two probes for equal accuracy.
    geofloor.probing.probe_table : Probe several models for several concepts.

    Notes
    -----
    Section 7.1 of [1]_ takes the mean-pooled states of one layer, fits on 80% of the examples and tests
    on the others. In the fit all classes have the same total weight; accuracies are not weighted.

    The interval assumes independent examples. It is somewhat too narrow if examples come from the same
    document, and with several folds, because these share most of their training examples.

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
        test_size: float | None = None,
        max_iter: int = 1000,
        level: float = 0.9,
        random_state: Any = None,
    ) -> None:
        self.C = C
        self.cv = cv
        self.test_size = test_size
        self.max_iter = max_iter
        self.level = level
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike, *, groups: ArrayLike | None = None) -> ConceptProbe:
        """Fit and test a probe on held-out examples, then fit it on all of them.

        Parameters
        ----------
        X : {array-like, CSR} of shape (n_examples, width)
            Hidden states, one row per example, for instance from `ActivationExtractor` with
            ``pooling="mean"``. Sparse ones, such as codes, are scaled but not centered.
        y : array-like of shape (n_examples,)
            Labels.
        groups : array-like of shape (n_examples,), default=None
            Group of each example, such as its file. No group is in both the training and the test
            examples, and the classes keep their shares approximately. A splitter receives the groups.

        Returns
        -------
        self : ConceptProbe
            The fitted probe.

        Raises
        ------
        ValueError
            If a parameter is out of range or has no effect, states are not finite, there is only one
            class, a class is too small to be split, `cv` puts a group into training and test examples,
            or an example is in two test sets.
        """
        self._check_parameters()
        X, y = validate_data(
            self, check_rows(X, "X"), plain_array(y, "y"), accept_sparse="csr", dtype=[np.float64, np.float32]
        )
        check_squares(X, "X")
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y has 1 class, {self.classes_[0]!r}; give labels of at least two classes.")
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
            raise ValueError(f"cv={self.cv!r} tests an example twice; use a splitter with disjoint test sets.")
        self.accuracy_ = float(self.correct_.mean())
        self.accuracy_interval_ = _wilson(self.correct_, self.level)
        self.estimator_ = self._pipeline(X).fit(X, y)
        self.n_iter_ = int(np.max(self.estimator_[-1].n_iter_))
        return self

    def split(self, y: ArrayLike, *, groups: ArrayLike | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Split examples into training and test parts, as `fit` does.

        Parameters
        ----------
        y : array-like of shape (n_examples,)
            Labels.
        groups : array-like of shape (n_examples,), default=None
            Group of each example.

        Returns
        -------
        splits : list of (ndarray, ndarray)
            Indices of the training and test examples, one pair per fold.

        Raises
        ------
        ValueError
            If a class or the number of groups is too small to be split, or `cv` puts a group into
            training and test examples.
        """
        self._check_parameters()
        y = np.asarray(plain_array(y, "y"))
        if y.ndim == 0:
            raise ValueError(f"y={shown(y)} is no array of labels; give one per example.")
        numbers = None
        if groups is not None:
            groups, numbers = read_groups(groups, len(y), "labels")
        splitter, test_size = self.cv, _TEST_SIZE if self.test_size is None else self.test_size
        if splitter is None and groups is None:
            splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=self.random_state)
        elif splitter is None or (groups is not None and isinstance(splitter, Integral)):
            n_folds = max(round(1 / test_size), 2) if splitter is None else int(splitter)
            splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=self.random_state)
        elif isinstance(splitter, Integral):
            splitter = check_cv(int(splitter), y, classifier=True, shuffle=True, random_state=self.random_state)
        else:
            splitter = check_cv(_checked_splitter(splitter), y, classifier=True)
        splits = list(splitter.split(np.zeros((len(y), 1)), y, groups))
        splits = splits[:1] if self.cv is None else splits
        if numbers is not None and any(np.intersect1d(numbers[train], numbers[test]).size for train, test in splits):
            raise ValueError(
                f"cv={shown(self.cv)} puts a group into training and test examples; use a number of folds or a "
                "splitter that keeps groups together, such as GroupKFold."
            )
        return splits

    def predict(self, X: Any) -> np.ndarray:
        """Predict the label of each example.

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
        """Predict the probability of each class.

        Parameters
        ----------
        X : {array-like, CSR} of shape (n_examples, width)
            Hidden states.

        Returns
        -------
        probabilities : ndarray of shape (n_examples, n_classes)
            One column per class, in the order of `classes_`. They assume that all classes are equally
            frequent, because the fit weights them equally.
        """
        X = self._checked(X)
        return self.estimator_.predict_proba(X)

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        X = check_rows(X, "X")
        if sp.issparse(X) and self.estimator_[0].with_mean:
            raise ValueError("X is a sparse matrix, but the probe was fitted to a dense one; give X.toarray().")
        return validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)

    def _pipeline(self, X: Any) -> Pipeline:
        return make_pipeline(
            StandardScaler(with_mean=not sp.issparse(X)),
            LogisticRegression(C=float(self.C), class_weight="balanced", max_iter=int(self.max_iter)),
        )

    def _check_parameters(self) -> None:
        check_number("C", self.C, 0, open_low=True)
        check_number("max_iter", self.max_iter, 1, whole=True)
        check_number("level", self.level, 0, 1, open_low=True, open_high=True)
        if self.test_size is not None:
            check_number("test_size", self.test_size, 0, 1, open_low=True, open_high=True)
            if self.cv is not None:
                raise ValueError(
                    f"test_size={self.test_size!r} has no effect with cv={shown(self.cv)}; leave out one of the two."
                )
        if isinstance(self.cv, Integral):
            if self.cv < 2:
                raise ValueError(f"cv={self.cv!r} must be at least 2 folds, a splitter, or None for one split.")
        elif self.cv is not None and self.random_state is not None:
            raise ValueError(
                f"random_state={shown(self.random_state)} has no effect with cv={shown(self.cv)}; give it to the "
                "splitter, or give a number of folds."
            )

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


def _wilson(correct: np.ndarray, level: float) -> tuple[float, float]:
    low, high = proportion_confint(int(correct.sum()), len(correct), alpha=1 - level, method="wilson")
    return float(low), float(high)
