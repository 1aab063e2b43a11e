"""The dependence of floors and critical width on the dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import check_array

from geofloor._validation import (
    check_array_of_numbers,
    check_flag,
    check_iterable,
    check_number,
    check_numeric,
    check_object,
    is_stream,
)
from geofloor.features import FeatureStatistics, SparseAutoencoder, fit_autoencoders
from geofloor.language_models._dictionary_report import DictionaryReport, dictionary_report
from geofloor.language_models._extractor import ActivationExtractor
from geofloor.language_models._loading import load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.language_models._positions import tokens_to_exclude
from geofloor.theory import FloorPredictor

_ROWS_AT_A_TIME = 8192
# Parameters that do not make another dictionary of the same settings.
_NOT_SETTINGS = frozenset({"random_state", "checkpoint_path", "checkpoint_every", "device", "verbose"})


@dataclass(frozen=True, kw_only=True)
class FloorBand:
    """Floors and critical widths of several dictionaries of the same activations.

    All arrays have one row per dictionary, in the order given to `measure_band`.

    Attributes
    ----------
    widths : ndarray of shape (n_widths,), float64
        Student widths, in dimensions.
    autoencoders : tuple of SparseAutoencoder
        The dictionaries, fitted.
    statistics : tuple of FeatureStatistics
        Feature tables of the dictionaries.
    predictors : tuple of FloorPredictor
        Predictors of the floors, fitted on the tables.
    l0 : ndarray of shape (n_dictionaries,), float64
        Mean number of codes per held-out row.
    explained_variance : ndarray of shape (n_dictionaries,), float64
        Share of the variance of held-out rows that the reconstruction explains.
    variance : float
        Variance of held-out rows, E‖x − x̄‖², in hidden-space units.
    reports : tuple of DictionaryReport, or None
        Measures of the dictionaries in the teacher; None without a teacher.

    See Also
    --------
    measure_band : Measures a band.
    geofloor.displays.FloorBandDisplay : Draws a band.
    """

    widths: np.ndarray
    autoencoders: tuple[SparseAutoencoder, ...]
    statistics: tuple[FeatureStatistics, ...]
    predictors: tuple[FloorPredictor, ...]
    l0: np.ndarray
    explained_variance: np.ndarray
    variance: float
    reports: tuple[DictionaryReport, ...] | None = None

    @property
    def critical_widths(self) -> np.ndarray:
        """Critical width d* of each dictionary, in dimensions."""
        return np.array([each.critical_width_ for each in self.predictors])

    @property
    def totals(self) -> np.ndarray:
        """Floor at width 0 of each dictionary: its total importance, in hidden-space units."""
        return np.array([float(each.predict([0.0])[0]) for each in self.predictors])

    def floors(self, *, relative: bool = False) -> np.ndarray:
        """Return the floor of each dictionary at each width.

        Parameters
        ----------
        relative : bool, default=False
            Whether to divide the floors by the variance of the activations, which is the same for all dictionaries.

        Returns
        -------
        floors : ndarray of shape (n_dictionaries, n_widths), float64
            Floors in hidden-space units, or as shares of the variance.
        """
        found = np.array([each.predict(self.widths) for each in self.predictors])
        return found / self.variance if check_flag("relative", relative) else found

    def floor_range(self, *, relative: bool = False) -> np.ndarray:
        """Return the lowest and the highest floor at each width.

        Parameters
        ----------
        relative : bool, default=False
            As in `floors`.

        Returns
        -------
        ends : ndarray of shape (n_widths, 2), float64
            Lowest and highest floor.
        """
        floors = self.floors(relative=relative)
        return np.stack([floors.min(axis=0), floors.max(axis=0)], axis=1)

    def critical_width_range(self) -> tuple[float, float]:
        """Return the lowest and the highest critical width.

        Returns
        -------
        ends : tuple of (float, float)
            Lowest and highest d*, in dimensions.
        """
        return float(self.critical_widths.min()), float(self.critical_widths.max())

    def choose(self, share: float | None = None, *, kl: float | None = None) -> int:
        """Choose the sparsest dictionary that recovers a share of the teacher's loss, or leaves little of it.

        Parameters
        ----------
        share : float, default=None
            Share of the loss of mean ablation to recover, ``kl_div_score_above_mean``.
        kl : float, default=None
            Largest loss to leave in place of `share`, ``kl_div_with_sae``, in nats per token.

        Returns
        -------
        place : int
            Place of the first dictionary with the chosen setting: of those that meet the condition with every seed,
            the one of the smallest mean `l0`, and of equal ones the first.

        Raises
        ------
        ValueError
            If not exactly one of `share` and `kl` is given, the band was measured without a teacher, or no setting
            meets the condition.
        """
        if (share is None) == (kl is None):
            raise ValueError(f"share={share} and kl={kl} are two conditions; give one, such as share=0.98.")
        asked = f"share={share}" if kl is None else f"kl={kl}"
        if self.reports is None:
            raise ValueError(
                f"{asked} can't be met, because the band was measured without a teacher; give teacher, layer and "
                "tokens to measure_band."
            )
        if kl is None:
            found = np.array([report.kl_div_score_above_mean for report in self.reports])
            met = found >= check_number("share", share, 0.0, 1.0)
            best = np.nanmax(found) if np.isfinite(found).any() else np.nan
        else:
            found = np.array([report.kl_div_with_sae for report in self.reports])
            met = found <= check_number("kl", kl, 0.0)
            best = np.nanmin(found)
        chosen = {
            float(self.l0[places].mean()): places[0] for places in reversed(self._settings()) if bool(met[places].all())
        }
        if not chosen:
            raise ValueError(
                f"{asked} is met by no setting with every seed: the best dictionary has {best:.3f}; add autoencoders "
                f"of larger l0 than {self.l0.max():.3g}, or of more latents or steps, or ask for less."
            )
        return chosen[min(chosen)]

    def _settings(self) -> list[list[int]]:
        """Group the places of dictionaries that differ in their seed only."""
        groups: dict[str, list[int]] = {}
        for place, sae in enumerate(self.autoencoders):
            settings = {name: value for name, value in sae.get_params().items() if name not in _NOT_SETTINGS}
            groups.setdefault(repr(settings), []).append(place)
        return list(groups.values())

    def frame(self, *, relative: bool = False) -> pd.DataFrame:
        """Return the band as a table.

        Parameters
        ----------
        relative : bool, default=False
            As in `floors`.

        Returns
        -------
        frame : DataFrame
            One row per dictionary, with the columns

            - ``activation``, ``n_latents`` and ``seed``, the integer of `random_state` or None;
            - ``l0`` and ``explained_variance`` of held-out rows;
            - if there is a teacher, ``kl``, the loss with the reconstruction in nats per token, and ``kl_recovered``,
              the share of the loss of mean ablation that it recovers;
            - ``n_features``, ``alpha`` and ``critical_width``;
            - ``tail_exponent``, with the ends of its interval, ``tail_low`` and ``tail_high``;
            - ``total``, the floor at width 0, in hidden-space units;
            - ``floor_64`` and so on, the floor at each width, or ``share_64`` with `relative`.
        """
        intervals = np.array([each.tail_exponent_interval_ for each in self.statistics])
        columns: dict[str, Any] = {
            "activation": [each.activation_ for each in self.autoencoders],
            "n_latents": [each.n_latents_ for each in self.autoencoders],
            "seed": [
                int(each.random_state) if isinstance(each.random_state, int | np.integer) else None
                for each in self.autoencoders
            ],
            "l0": self.l0,
            "explained_variance": self.explained_variance,
        }
        if self.reports is not None:
            columns["kl"] = [each.kl_div_with_sae for each in self.reports]
            columns["kl_recovered"] = [each.kl_div_score_above_mean for each in self.reports]
        columns |= {
            "n_features": [each.n_features_ for each in self.predictors],
            "alpha": [each.alpha_ for each in self.predictors],
            "critical_width": self.critical_widths,
            "tail_exponent": [each.tail_exponent_ for each in self.statistics],
            "tail_low": intervals[:, 0],
            "tail_high": intervals[:, 1],
            "total": self.totals,
        }
        name = "share" if relative else "floor"
        floors = self.floors(relative=relative)
        columns |= {f"{name}_{width:g}": floors[:, place] for place, width in enumerate(self.widths)}
        return pd.DataFrame(columns)


def measure_band(
    autoencoders: Any,
    X: Any,
    widths: ArrayLike,
    *,
    held_out: Any,
    table_rows: Any = None,
    statistics: FeatureStatistics | None = None,
    predictor: FloorPredictor | None = None,
    teacher: Any = None,
    layer: int | None = None,
    tokens: Any = None,
    output: str = "residual",
    skip_first: int = 1,
    exclude_tokens: Any = None,
    n_vocabulary: int | None = None,
    batch_size: int = 8,
    pad_token_id: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
    verbose: int = 0,
) -> FloorBand:
    """Measure how far floors and critical width depend on the dictionary.

    Several autoencoders are fitted on the same activations, by `fit_autoencoders <geofloor.features.fit_autoencoders>`.
    Each gives a feature table and, by Eq. 2, floors and a critical width. With a teacher, each is also judged by
    `dictionary_report`.

    Parameters
    ----------
    autoencoders : list of SparseAutoencoder
        Autoencoders of different sparsities, sizes, activations or seeds. Those that are fitted are measured as they
        are, and clones of the others are fitted.
    X : array-like of shape (n_tokens, d_model), or iterable of such batches
        Activations to fit on, as in `SparseAutoencoder.fit <geofloor.SparseAutoencoder.fit>`.
    widths : array-like of shape (n_widths,)
        Student widths, in dimensions.
    held_out : array-like of shape (n_tokens, d_model), or iterable of such batches
        Activations of other text, for L0 and explained variance.
    table_rows : array-like of shape (n_tokens, d_model), or iterable of such batches, default=None
        Activations for the feature tables; by default `X`, which must then allow a second reading. All tables are
        measured in one reading.
    statistics : FeatureStatistics, default=None
        Unfitted statistics, for other parameters than the defaults.
    predictor : FloorPredictor, default=None
        Unfitted predictor, for another allocation than Eq. 2.
    teacher : PreTrainedModel, str or path-like, default=None
        Teacher, for `dictionary_report`. `layer` and `tokens` then belong to it.
    layer : int, default=None
        Block of the activations.
    tokens : int array-like of shape (n_sequences, seq_len) or datasets.Dataset, default=None
        Token ids of text that the dictionaries were not trained on.
    output : {"residual", "mlp", "attention"}, default="residual"
        Output of the block that the activations are of, as in `dictionary_report`, like the next seven parameters.
    skip_first : int, default=1
        Leading positions of each sequence left intact.
    exclude_tokens : "special", list of int or None, default=None
        Tokens whose positions are left intact and do not count.
    n_vocabulary : int or None, default=None
        Number of tokens that count.
    batch_size : int, default=8
        Sequences per forward pass.
    pad_token_id : int or None, default=None
        Token that pads sequences at their end.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name.
    device : str, default="auto"
        Device of the teacher.
    verbose : int, default=0
        Above 0, progress bars of the reports are shown. Those of fits follow `verbose` of the autoencoders.

    Returns
    -------
    band : FloorBand
        The band. Its `choose` picks a sparsity by the share of the loss recovered.

    Raises
    ------
    TypeError
        If an argument is an object of another kind.
    ValueError
        Before any training: if data or widths are out of range, `X` can be read only once and `table_rows` is None, or
        only some of `teacher`, `layer` and `tokens` are given or do not fit each other. Then as
        `SparseAutoencoder.fit <geofloor.SparseAutoencoder.fit>`.

    See Also
    --------
    geofloor.features.bootstrap_floors : Sampling error of the floors of one dictionary.
    geofloor.displays.FloorBandDisplay : Draws the band.

    Notes
    -----
    The band is a range over the dictionaries given, not an interval with a probability. It covers the choices that the
    list varies, and neither the error of Eq. 2 nor, within one dictionary, that of sampling.

    Floors are in squared activation, and no floor charges what a dictionary leaves unexplained. With
    ``relative=True`` they are shares of the variance of the activations, like 1 minus the explained variance. The total
    importance of a dictionary is no common unit, because it grows with latents that fire on most tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import SparseAutoencoder
    >>> from geofloor.language_models import measure_band
    >>> rng = np.random.default_rng(0)
    >>> features = rng.random((7000, 12)) * (rng.random((7000, 12)) < 0.1)
    >>> activations = features @ rng.normal(size=(12, 8))
    >>> autoencoders = [SparseAutoencoder(24, l0=l0, random_state=0) for l0 in (1, 2)]
    >>> band = measure_band(autoencoders, activations[:6000], [2, 4], held_out=activations[6000:])
    >>> band.frame()["l0"].tolist()
    [1.0, 2.0]
    >>> band.floor_range(relative=True).shape
    (2, 2)
    """
    wanted = "give a list of SparseAutoencoder"
    given = [
        check_object("autoencoders", each, SparseAutoencoder, wanted)
        for each in check_iterable("autoencoders", autoencoders, wanted)
    ]
    if not given:
        raise ValueError(f"autoencoders=[] is empty; {wanted}.")
    at = check_array_of_numbers(widths, "widths", low=0.0)
    statistics = FeatureStatistics() if statistics is None else statistics
    check_object("statistics", statistics, FeatureStatistics, "give an unfitted FeatureStatistics")
    predictor = FloorPredictor() if predictor is None else predictor
    check_object("predictor", predictor, FloorPredictor, "give an unfitted FloorPredictor")
    unfitted = [sae for sae in given if not hasattr(sae, "encoder_")]
    if unfitted and table_rows is None and is_stream(X) and iter(X) is X:
        raise ValueError(
            "table_rows=None needs data that can be read twice, and X is a one-time iterator; give table_rows, such "
            "as held_out, or an array or store as X."
        )
    name, X = "X", _checked(X, "X")
    rows = X
    if table_rows is not None:
        name, rows = "table_rows", _checked(table_rows, "table_rows")
    held_out = _in_memory(held_out)
    report: dict[str, Any] = {
        "output": output,
        "exclude_tokens": exclude_tokens,
        "n_vocabulary": n_vocabulary,
        "skip_first": skip_first,
        "batch_size": batch_size,
        "pad_token_id": pad_token_id,
        "device": device,
        "verbose": verbose,
    }
    module = _check_teacher(teacher, layer, tokens, model_kwargs, held_out.shape[1], report)

    fitted = iter(fit_autoencoders(unfitted, X) if unfitted else [])
    dictionaries = [sae if hasattr(sae, "encoder_") else next(fitted) for sae in given]
    tables = [clone(statistics) for _ in dictionaries]
    for batch in _batches(rows, name):
        for sae, table in zip(dictionaries, tables, strict=True):
            table.partial_fit(sae.transform(batch))
    predictors = [clone(predictor).fit(table.table_) for table in tables]
    reports = None
    if module is not None and layer is not None:
        reports = tuple(dictionary_report(module, layer, sae, tokens, **report) for sae in dictionaries)
    return FloorBand(
        widths=at,
        autoencoders=tuple(dictionaries),
        statistics=tuple(tables),
        predictors=tuple(predictors),
        l0=np.array([sae.transform(held_out).nnz / len(held_out) for sae in dictionaries]),
        explained_variance=np.array([sae.score(held_out) for sae in dictionaries]),
        variance=float(held_out.var(axis=0, dtype=np.float64).sum()),
        reports=reports,
    )


def _checked(rows: Any, name: str) -> Any:
    """Check rows in memory and return them as float32; leave stores, memory maps and iterables as they are."""
    if is_stream(rows) or hasattr(rows, "iter_batches") or isinstance(rows, np.memmap):
        return rows
    return _numbers(rows, name)


def _numbers(rows: Any, name: str) -> np.ndarray:
    """Return rows as finite float32 numbers in two dimensions."""
    return check_array(check_numeric(rows, name), dtype=np.float32, order="C", input_name=name)


def _in_memory(held_out: Any) -> np.ndarray:
    """Return held-out rows as one array."""
    pieces = list(_batches(_checked(held_out, "held_out"), "held_out"))
    if len({piece.shape[1] for piece in pieces}) > 1:
        raise ValueError("held_out has batches of different numbers of inputs; give those of one teacher's block.")
    return np.concatenate(pieces)


def _batches(rows: Any, name: str) -> Iterator[np.ndarray]:
    """Yield rows batch by batch, at least one."""
    if is_stream(rows):
        batches = iter(rows)
    elif hasattr(rows, "iter_batches"):
        batches = rows.iter_batches(_ROWS_AT_A_TIME)
    else:
        batches = (rows[start : start + _ROWS_AT_A_TIME] for start in range(0, len(rows), _ROWS_AT_A_TIME))
    is_empty = True
    for batch in batches:
        is_empty = False
        yield _numbers(batch, name)
    if is_empty:
        raise ValueError(f"{name} gave no batch; give at least one, and a generator only once.")


def _check_teacher(
    teacher: Any, layer: Any, tokens: Any, model_kwargs: Any, n_inputs: int, report: dict[str, Any]
) -> Any:
    """Load the teacher, if there is one, and check block and tokens before the fits.

    Tokens to exclude are resolved in `report`.
    """
    given = {"teacher": teacher, "layer": layer, "tokens": tokens}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(f"{missing[0]}=None, and a report needs teacher, layer and tokens; give all three, or none.")
    layer = check_number("layer", layer, whole=True)
    _, module = load_language_model(teacher, model_kwargs, report["device"])
    model = LanguageModel(module, "the teacher", n_vocabulary=report["n_vocabulary"])
    excluded = tokens_to_exclude(report["exclude_tokens"], teacher, model_kwargs, model.n_tokens)
    report["exclude_tokens"] = excluded  # the module has no tokenizer
    model.token_rows(tokens, "tokens", report["pad_token_id"], excluded=excluded)
    extractor = ActivationExtractor(
        module,
        layer,
        output=report["output"],
        skip_first=report["skip_first"],
        max_length=None,
        batch_size=report["batch_size"],
    ).fit()
    if extractor._n_features_out != n_inputs:
        raise ValueError(
            f"held_out has {n_inputs} inputs, and the teacher's activations after layer={layer} have "
            f"{extractor._n_features_out}; give activations of this block."
        )
    return module
