"""Linear readings of single features from hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.utils import check_array, check_random_state, gen_batches

from geofloor._validation import check_array_of_numbers, check_flag, check_number, shown
from geofloor.probing._inputs import check_rows, check_squares, read_groups, read_indices, read_states
from geofloor.probing._moments import BATCH_ROWS, MomentRidge, Moments, iter_rows, sum_moments

_RANKED_VALUES = 2**22  # predictions ranked at a time
_MIN_FIRINGS = 10  # in the training and in the validation rows, for a feature to count in the choice of the strength


def feature_probes(
    states: Any,
    codes: Any,
    *,
    latents: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    ridges: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    test_size: float = 0.2,
    validation_size: float = 0.1,
    auc: bool = False,
    random_state: Any = None,
) -> pd.DataFrame:
    r"""Predict the activation of each feature from hidden states by ridge regression, and score it.

    With the codes of a teacher and the states of a student on the same tokens, the scores show which
    features of the teacher can still be read linearly from the student.

    Parameters
    ----------
    states : array-like of shape (n_tokens, width), or mapping of str to such arrays
        Hidden states, for instance of a student. Several models, by name, share one split.
    codes : {array-like, CSR} of shape (n_tokens, n_latents)
        Codes of the teacher's activations at the same tokens.
    latents : array-like of int of shape (n_features,), default=None
        Latents to predict, such as ``FeatureStatistics.alive_``; by default those that fire at least once.
    groups : array-like of shape (n_tokens,), default=None
        Group of each token, such as the number of its sequence. All tokens of a group are in the same part
        of the split. By default each token is drawn on its own.
    ridges : sequence of float, default=(1e-6, ..., 1)
        Strengths of the penalty to choose from, each above 0: ρ in the Notes.
    test_size : float, default=0.2
        Share of the tokens, or groups, to measure R² on.
    validation_size : float, default=0.1
        Share to choose the strength on. The final coefficients are fitted on the training and validation parts.
    auc : bool, default=False
        Whether to add the area under the ROC curve for firing against not firing. Ranking the predictions
        then takes most of the time.
    random_state : int, RandomState instance or None, default=None
        Seed of the split.

    Returns
    -------
    table : DataFrame
        For each model one row per feature, the most important first, with the columns

        - ``model``, if `states` is a mapping; ``width`` of its states;
        - ``latent``: number of the latent; ``rank``: 1 for the most important;
        - ``importance``: E[z²] over all tokens; ``firing_rate``: P(z ≠ 0);
        - ``n_test_firings``: number of test tokens with z ≠ 0; if it is small, R² is noisy;
        - ``r2``: R² on the test tokens, negative if their mean would be a better prediction, and NaN if the
          activation does not vary;
        - ``auc``, with ``auc=True``: area under the ROC curve for firing, NaN if the latent fires on all or
          none of the test tokens;
        - ``ridge``: the chosen strength, the same for all features of a model.

    Raises
    ------
    ValueError
        If the numbers of tokens differ, values are not finite, a latent does not exist, no latent fires, a
        parameter is out of range, or there are too few tokens or groups for three parts.

    See Also
    --------
    geofloor.displays.FeatureStaircaseDisplay : Draw R² over rank for several widths.
    FeatureStatistics : Measure which latents are alive.

    Notes
    -----
    With standardized states X and centered activations Z of n training tokens, the coefficients are

    .. math:: W = (X^\top X / n + \rho I)^{-1} X^\top Z / n,

    where ρ is the strength. One eigendecomposition of the width × width matrix gives them for all
    features and strengths; :math:`X^\top Z` is a product with the sparse codes. Errors follow from the
    same sums over the test tokens, without an array of tokens × features (with `auc`, predictions are
    made for a few features at a time). All sums are float64.

    The chosen strength has the largest R² on the validation tokens, averaged over the features that fire at
    least ten times in both the training and the validation part. If there are none, all features count.

    In the theory, R² is 1 up to rank F_S, the number of features that the student's width can keep, and 0
    beyond [1]_. This holds for the best reconstruction, not for a linear one: features in superposition
    disturb each other, so the R² of a kept feature is below 1.

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
    >>> student = codes[:, :2] @ rng.normal(size=(2, 2))  # lacks the third feature
    >>> table = feature_probes(student, codes, random_state=0)
    >>> table[["latent", "rank"]].T.to_numpy()
    array([[0, 1, 2],
           [1, 2, 3]])
    >>> (table.r2 > 0.99).tolist()
    [True, True, False]
    """
    test_size, validation_size, strengths = _checked_sizes(test_size, validation_size, ridges)
    auc = check_flag("auc", auc)
    codes = _checked_codes(codes)
    if isinstance(states, Mapping) and not states:
        raise ValueError("states is an empty mapping; give at least one model.")
    models = {
        name: read_states(each, _name_of(name))
        for name, each in (states.items() if isinstance(states, Mapping) else [(None, states)])
    }
    for name, each in models.items():
        if sp.issparse(each):
            raise ValueError(f"{_name_of(name)} is sparse; give a dense array, such as {_name_of(name)}.toarray().")
        if each.shape[:1] != codes.shape[:1] or len(each.shape) != 2:
            raise ValueError(
                f"{_name_of(name)} has shape {tuple(each.shape)}; give (n_tokens, width) for codes of {codes.shape}."
            )
    chosen = _chosen_latents(codes, latents)
    codes = codes[:, chosen]
    parts = _parts(codes.shape[0], groups, test_size, validation_size, random_state)
    features_table = _feature_columns(codes, chosen, parts[2])
    order = np.argsort(-features_table["importance"].to_numpy(), kind="stable")
    tables = []
    for name, each in models.items():
        columns = _probe_features(each, codes, parts, strengths, auc=auc, name=_name_of(name))
        table = features_table.assign(width=each.shape[1], **columns).iloc[order].reset_index(drop=True)
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
    # Sums of squares about a rough mean lose fewer digits.
    shift = np.asarray(states[parts[0][:BATCH_ROWS]], dtype=np.float64).mean(axis=0)
    train, validation, test = (sum_moments(states, codes, rows, shift) for rows in parts)
    if not all(np.isfinite(each.xx).all() for each in (train, validation, test)):
        raise ValueError(f"{name} holds values that are not finite, or too large to square; clean or scale them.")
    scores = _validation_scores(MomentRidge(train), validation, _fires_often(codes, parts[:2]), ridges)
    ridge = max(ridges, key=scores.__getitem__)
    fitted = MomentRidge(train + validation)
    columns = {"r2": 1.0 - fitted.unexplained(ridge, test)}
    if auc:
        columns["auc"] = _areas(states, codes, parts[2], shift + fitted.mean_x, fitted.coefficients(ridge))
    return columns | {"ridge": ridge}


def _validation_scores(
    fitted: MomentRidge, validation: Moments, often: np.ndarray, ridges: Sequence[float]
) -> dict[float, float]:
    """Return for each strength the mean R² on the validation rows over frequent features, or over all."""
    scores = {}
    for ridge in ridges:
        r2 = 1.0 - fitted.unexplained(ridge, validation)
        chosen = r2[often & np.isfinite(r2)] if (often & np.isfinite(r2)).any() else r2[np.isfinite(r2)]
        scores[ridge] = chosen.mean() if chosen.size else 0.0
    return scores


def _areas(states: Any, codes: Any, rows: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the areas under the ROC curves, from the ranks of the predictions of a few features at a time."""
    fires, x = codes[rows].tocsc(), np.concatenate([x for x, _ in iter_rows(states, codes, rows, mean)])
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
    codes = check_rows(codes, "codes")
    checked = sp.csr_array(check_array(codes, accept_sparse="csr", dtype=[np.float32, np.float64], input_name="codes"))
    check_squares(checked, "codes")
    if not checked.has_canonical_format or (checked.data == 0).any():
        checked = checked.copy()
        checked.sum_duplicates()
        checked.eliminate_zeros()
    return checked


def _chosen_latents(codes: Any, latents: ArrayLike | None) -> np.ndarray:
    if latents is None:
        chosen = np.flatnonzero(np.bincount(codes.indices, minlength=codes.shape[1]))
        if not chosen.size:
            raise ValueError("codes: no latent fires; give codes with nonzero values.")
        return chosen
    chosen = read_indices(latents, "latents")
    if chosen.max() >= codes.shape[1] or len(np.unique(chosen)) < len(chosen):
        raise ValueError(f"latents must be different numbers from 0 to {codes.shape[1] - 1}.")
    return chosen


def _feature_columns(codes: Any, latents: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    n_tokens, n_features = codes.shape
    squares = np.bincount(codes.indices, codes.data.astype(np.float64) ** 2, minlength=n_features)
    return pd.DataFrame(
        {
            "latent": latents,
            "importance": squares / n_tokens,
            "firing_rate": np.bincount(codes.indices, minlength=n_features) / n_tokens,
            "n_test_firings": np.bincount(codes[test].indices, minlength=n_features),
        }
    )


def _fires_often(codes: Any, parts: Sequence[np.ndarray]) -> np.ndarray:
    counts = [np.bincount(codes[rows].indices, minlength=codes.shape[1]) for rows in parts]
    return np.min(counts, axis=0) >= _MIN_FIRINGS


def _parts(
    n_tokens: int, groups: ArrayLike | None, test_size: float, validation_size: float, random_state: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the rows to train, to validate and to test on, each ascending, for fast reads of memory maps."""
    units = np.arange(n_tokens) if groups is None else read_groups(groups, n_tokens, "tokens")[1]
    n_units = int(units.max()) + 1
    n_test, n_validation = round(test_size * n_units), round(validation_size * n_units)
    if min(n_test, n_validation, n_units - n_test - n_validation) < 1:
        raise ValueError(
            f"{n_units} {'tokens' if groups is None else 'groups'} are too few to test on {test_size:g} of them, "
            f"validate on {validation_size:g} and train on the rest; give more."
        )
    part = np.zeros(n_units, dtype=np.int8)
    order = check_random_state(random_state).permutation(n_units)
    part[order[:n_test]], part[order[n_test : n_test + n_validation]] = 2, 1
    train, validation, test = (np.flatnonzero(part[units] == number) for number in range(3))
    return train, validation, test


def _checked_sizes(
    test_size: float, validation_size: float, ridges: Sequence[float]
) -> tuple[float, float, tuple[float, ...]]:
    test_size = check_number("test_size", test_size, 0, 1, open_low=True, open_high=True)
    validation_size = check_number("validation_size", validation_size, 0, 1, open_low=True, open_high=True)
    if not test_size + validation_size < 1:
        raise ValueError(f"test_size={test_size!r} and validation_size={validation_size!r} must sum to less than 1.")
    strengths = check_array_of_numbers(ridges, "ridges", low=0)
    if not strengths.min() > 0:
        raise ValueError(f"ridges={shown(ridges)} must be one or more finite numbers above 0.")
    return test_size, validation_size, tuple(strengths.tolist())
