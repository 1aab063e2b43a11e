"""Fit several sparse autoencoders in one pass over one stream."""

from __future__ import annotations

import copy
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import validate_data

from geofloor._training.devices import resolve_device
from geofloor._training.processes import join_processes
from geofloor._training.reports import check_report_to
from geofloor._training.rows import ArrayRows, StreamRows, open_rows
from geofloor._training.settings import check_files
from geofloor._training.shared import SharedRows, SharedStream, StreamReader, pick
from geofloor._validation import check_iterable, check_object, is_stream, shown
from geofloor.features._autoencoder import SparseAutoencoder
from geofloor.features._autoencoder_settings import check_parameters
from geofloor.features._precision import check_precision

_ByKey = dict[Hashable, list[SparseAutoencoder]]
_LIST = "give a list of autoencoders, or a dict of them by key of X"


class _Fit(NamedTuple):
    """Fit in progress: its steps, and its reader if it shares the stream."""

    steps: Generator[None]
    reader: StreamReader | None


def fit_autoencoders(autoencoders: Any, X: Any) -> Any:
    """Fit several sparse autoencoders on the same activations, and read a stream only once for all of them.

    The results have the bits of autoencoders fitted one by one on the same data. The arguments are not changed: clones
    are fitted.

    Parameters
    ----------
    autoencoders : list of SparseAutoencoder, or dict of SparseAutoencoder or of lists of them
        Autoencoders, which may differ in every parameter. A dict has one entry per key of `X`, such as a block of the
        teacher.
    X : array-like of shape (n_tokens, n_inputs), or iterable of such batches; or their dicts
        Activations, as in `SparseAutoencoder.fit`. If `autoencoders` is a dict, give a dict of arrays or stores, or an
        iterable of dicts of batches with the same number of rows for each key, as
        ``ActivationExtractor(layer=[8, 12]).iter_batches`` gives them.

    Returns
    -------
    fitted : list of SparseAutoencoder, or dict
        Fitted clones, arranged as in `autoencoders`.

    Raises
    ------
    TypeError
        If `autoencoders` holds other objects.
    ValueError
        As `SparseAutoencoder.fit`, and before any training: if there are no autoencoders, one is given twice, two have
        the same `checkpoint_path`, one asks for several epochs of an iterable that can be read only once, or the keys
        of `autoencoders` are not in `X`.

    See Also
    --------
    SparseAutoencoder : Fits one.
    geofloor.language_models.measure_band : Floors of several dictionaries.

    Notes
    -----
    Autoencoders of one epoch take turns on a stream. The next step is always that of the autoencoder that has read the
    fewest rows. A batch of the stream is kept until all have read it, so that memory holds the sample of the first
    rows (see `SparseAutoencoder.fit`) and, beyond it, at most the largest `batch_size` and one batch of the stream.
    Arrays, stores, lists, and iterables with ``n_epochs`` above 1 are read by one autoencoder after the other.

    Each autoencoder writes to its own `checkpoint_path`. The same call resumes all of them. If the stream has a method
    ``iter_from(row)``, it is read from the first row that one of them needs.

    Examples
    --------
    >>> import numpy as np
    >>> from geofloor import SparseAutoencoder
    >>> from geofloor.features import fit_autoencoders
    >>> rng = np.random.default_rng(0)
    >>> features = rng.random((6000, 12)) * (rng.random((6000, 12)) < 0.1)
    >>> activations = features @ rng.normal(size=(12, 8))
    >>> autoencoders = [SparseAutoencoder(24, l0=l0, random_state=0) for l0 in (1, 2)]
    >>> sparse, dense = fit_autoencoders(autoencoders, (activations[i : i + 500] for i in range(0, 6000, 500)))
    >>> sparse.explained_variance_ < dense.explained_variance_
    True
    """
    by_key = autoencoders if isinstance(autoencoders, Mapping) else {None: autoencoders}
    if not by_key:
        raise ValueError(f"autoencoders={shown(autoencoders)} is empty; {_LIST}.")
    given = {key: _listed(several) for key, several in by_key.items()}
    if any(isinstance(several, SparseAutoencoder) for several in by_key.values()) and None in given:
        raise TypeError(f"autoencoders={shown(autoencoders)} is a single autoencoder; {_LIST}.")
    _check(given)
    keys = list(by_key) if isinstance(autoencoders, Mapping) else None
    fitted = {key: [clone(sae) for sae in several] for key, several in given.items()}
    _fit_all(fitted, X, keys)
    if keys is None:
        return fitted[None]
    return {key: fitted[key][0] if isinstance(by_key[key], SparseAutoencoder) else fitted[key] for key in keys}


def _listed(several: Any) -> list[SparseAutoencoder]:
    """Check the autoencoders of one key, one or a list, and return them as a list."""
    if isinstance(several, SparseAutoencoder):
        return [several]
    if isinstance(several, str | bytes | Mapping):
        raise TypeError(f"autoencoders holds {shown(several)}, a {type(several).__name__}; {_LIST}.")
    several = check_iterable("autoencoders", several, _LIST)
    listed = [check_object("autoencoders", each, SparseAutoencoder, _LIST) for each in several]
    if not listed:
        raise ValueError(f"autoencoders holds {shown(several)}, which is empty; {_LIST}.")
    return listed


def _check(given: _ByKey) -> None:
    """Check the parameters of all autoencoders, and refuse objects and checkpoints given twice."""
    seen: set[int] = set()
    paths: set[Path] = set()
    for sae in (each for several in given.values() for each in several):
        if id(sae) in seen:
            raise ValueError(f"autoencoders holds {shown(sae)} twice, and each is fitted once; give a clone.")
        seen.add(id(sae))
        check_parameters(sae)
        check_precision(sae.precision, resolve_device(sae.device))
        check_files(sae)
        names = check_report_to(sae.report_to)
        if len(seen) > 1 and set(names) - {"tensorboard"}:
            raise ValueError(
                f"report_to={shown(sae.report_to)} follows one fit at a time; use 'tensorboard', or fit one by one."
            )
        if sae.checkpoint_path is not None:
            path = Path(sae.checkpoint_path).resolve()
            if path in paths:
                raise ValueError(f"checkpoint_path='{path}' is that of two autoencoders; give each its own file.")
            paths.add(path)


def _fit_all(fitted: _ByKey, X: Any, keys: list[Hashable] | None) -> None:
    """Start all fits, so that errors come before long work, and take their steps."""
    fits: list[_Fit] = []
    try:
        for source, of_source, picked in _sources(X, keys):
            chosen: _ByKey = {key: fitted[key] for key in of_source}
            start = _start_on_stream if _is_read_in_order(source) else _start_on_arrays
            fits += start(chosen, source, picked)
        _take_turns([(fit.reader, fit.steps) for fit in fits if fit.reader is not None])
        for fit in fits:
            if fit.reader is None:
                for _ in fit.steps:
                    pass
    finally:
        for fit in fits:
            fit.steps.close()


def _sources(X: Any, keys: list[Hashable] | None) -> Iterator[tuple[Any, list[Hashable], list[Hashable] | None]]:
    """Divide data into sources, each with the keys that it is for and those to pick from its batches."""
    if keys is None:
        yield X, [None], None
    elif isinstance(X, Mapping):
        for key in keys:
            if key not in X:
                raise ValueError(f"X has no {shown(key)}, a key of autoencoders; its keys are {shown(list(X))}.")
            yield X[key], [key], None
    elif isinstance(X, list | tuple):
        batches = [pick(batch, keys) for batch in X]
        for key in keys:
            yield [batch[key] for batch in batches], [key], None
    else:
        if not is_stream(X):
            pick(X, keys)
        yield X, keys, keys


def _is_read_in_order(source: Any) -> bool:
    """Tell whether data are an iterable of batches, other than a list."""
    return is_stream(source) and not isinstance(source, list | tuple)


def _start_on_arrays(chosen: _ByKey, source: Any, keys: list[Hashable] | None) -> list[_Fit]:
    """Start fits on rows in random access, or on a list; they share the sample."""
    (several,) = chosen.values()
    first = several[0]
    rows = first._open(source)
    for sae in several[1:]:
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(first, name):
                setattr(sae, name, getattr(first, name))
    return _start_on_copies(several, rows)


def _start_on_stream(chosen: _ByKey, source: Any, keys: list[Hashable] | None) -> list[_Fit]:
    """Start fits on an iterable: those of one epoch share it."""
    fits, sharing = [], {}
    one_time = iter(source) is source
    for key, several in chosen.items():
        sharing[key] = [sae for sae in several if one_time or _n_epochs(sae) == 1]
        for sae in several:
            if not one_time and _n_epochs(sae) > 1:
                rows = open_rows(_OfKey(source, key, keys), stream=True)
                validate_data(sae, rows.sample[:1], dtype=np.float32)
                fits.append(_start(sae, rows))
    sharing = {key: several for key, several in sharing.items() if several}
    if not sharing:
        return fits
    shared = SharedStream(source, None if keys is None else list(sharing))
    readers = {key: [shared.reader(key) for _ in several] for key, several in sharing.items()}
    for key, several in sharing.items():
        sampler = shared.reader(key)
        sampled = StreamRows(sampler)
        sampler.close()
        for sae in several:
            validate_data(sae, sampled.sample[:1], dtype=np.float32)
        if sampled.is_read:
            for reader in readers[key]:
                reader.close()
            fits += _start_on_copies(several, ArrayRows(sampled.sample))
            continue
        for sae, reader in zip(several, readers[key], strict=True):
            if _n_epochs(sae) > 1:
                raise ValueError(
                    f"n_epochs={sae.n_epochs!r} passes need data that can be read again; X is a one-time iterator."
                )
            fits.append(_start(sae, SharedRows(sampled, reader)))
    shared.seek()
    return fits


def _start_on_copies(several: list[SparseAutoencoder], rows: ArrayRows | StreamRows) -> list[_Fit]:
    """Start fits on rows of their own, with the sample and the digest in common."""
    if any(sae.checkpoint_path is not None for sae in several):
        rows.fingerprint  # noqa: B018 - cached, because it reads all rows
    return [_start(sae, copy.copy(rows)) for sae in several]


def _start(sae: SparseAutoencoder, rows: ArrayRows | StreamRows) -> _Fit:
    """Start a fit, up to its first step."""
    steps = sae._fit_steps(rows, join_processes(sae.device))
    next(steps)
    return _Fit(steps, rows.reader if isinstance(rows, SharedRows) else None)


def _n_epochs(sae: SparseAutoencoder) -> int:
    """Return the passes over an iterable of unknown length."""
    return 1 if isinstance(sae.n_epochs, str) else int(sae.n_epochs)


def _take_turns(sharing: list[tuple[StreamReader, Iterator[None]]]) -> None:
    """Take the steps of fits that share streams, always of the one that has read the fewest rows."""
    while sharing:
        turn = min(range(len(sharing)), key=lambda place: sharing[place][0].position)
        reader, steps = sharing[turn]
        try:
            next(steps)
        except StopIteration:
            reader.close()
            del sharing[turn]


class _OfKey:
    """Stream of the arrays of one key, which can be read again."""

    def __init__(self, stream: Iterable[Any], key: Hashable, keys: list[Hashable] | None) -> None:
        self._stream = stream
        self._key = key
        self._keys = keys

    def __iter__(self) -> Iterator[Any]:
        return (pick(batch, None if self._keys is None else [self._key])[self._key] for batch in self._stream)
