"""Extract activations to stores on disk, by one process or by several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from geofloor._files.sealed import only_writer
from geofloor._training.processes import Processes
from geofloor.language_models._inputs import Window
from geofloor.language_models._residual_stream import ResidualStream
from geofloor.language_models._shared_store import SHARDS_AT_A_TIME, SharedStoreWriter, begin_sharing
from geofloor.language_models._store import MANIFEST, ActivationStore, StoreWriter, noted_shards


def write_stores(
    folders: Mapping[int, tuple[Path, bool]],
    windows: Iterator[Window],
    stream: ResidualStream,
    settings: Callable[[int], dict[str, Any]],
    processes: Processes,
    *,
    dtype: str,
    shard_tokens: int,
) -> dict[int, ActivationStore]:
    """Write one store per block, or complete those of interrupted runs.

    Parameters
    ----------
    folders : mapping of int to tuple of (Path, bool)
        By block, the folder of its store, and whether it holds a finished one.
    windows : iterator of Window
        The input, the same in each process.
    stream : ResidualStream
        The model.
    settings : callable
        Function of the block that returns the settings in the manifest.
    processes : Processes
        Processes that share the work; all call this function.
    dtype : str
        Stored precision.
    shard_tokens : int
        Rows per shard.

    Returns
    -------
    stores : dict of int to ActivationStore
        The finished stores, by block.

    Raises
    ------
    ValueError
        If a folder holds a damaged store or one of another input, model or settings, or processes were given different
        arguments.
    """
    arguments = {layer: {**settings(layer), "model": "", "dtype": dtype} for layer in folders}  # paths may differ
    processes.agree(arguments=arguments)
    writers: dict[int, StoreWriter | SharedStoreWriter] = {}
    shared: dict[int, SharedStoreWriter] = {}

    def begin() -> dict[int, Any]:
        for layer in sorted(folders):  # one order for all jobs, lest two wait for each other
            folder, finished = folders[layer]
            if not finished:
                locks.enter_context(only_writer(folder / MANIFEST))
        progress = {}
        for layer, (folder, _) in folders.items():
            writers[layer] = writer = StoreWriter(folder, settings(layer), width=stream.width, dtype=dtype)
            if not writer.complete and (processes.n > 1 or noted_shards(folder)):
                progress[layer] = begin_sharing(writer)
        return progress

    def share(progress: Mapping[int, Any]) -> None:
        for layer, each in progress.items():
            shared[layer] = SharedStoreWriter(folders[layer][0], each, processes)
        writers.update(shared)

    def advance() -> bool:
        """Extract until it is time to hear of errors of other processes; return whether the input has ended."""
        n_rows = 0
        for window in windows:
            _extract(window, stream, writers)
            n_rows += window.n_rows
            if shared and n_rows >= processes.n * SHARDS_AT_A_TIME * shard_tokens:
                return False
        for writer in shared.values():
            writer.finish_share()
        return True

    def finish() -> None:
        for writer in writers.values():
            writer.finish()

    with contextlib.ExitStack() as locks:
        processes.together(share, processes.on_main(begin))
        ended = False
        while shared and not ended:
            ended = processes.together(advance)
            read = [writer.digest.hexdigest() for writer in shared.values()]
            processes.agree(X=(read, ended))
        if not shared:
            processes.on_main(advance)
        processes.on_main(finish)
    return {layer: ActivationStore(folder) for layer, (folder, _) in folders.items()}


def _extract(window: Window, stream: ResidualStream, writers: Mapping[int, StoreWriter | SharedStoreWriter]) -> None:
    """Compute the rows of a window that writers want."""
    wanted = {layer: writer for layer, writer in writers.items() if writer.wants(window)}
    if not wanted:
        return
    for part in _split(window, stream.batch_size):
        layers = []
        for layer, writer in wanted.items():
            if writer.needs(part.n_rows):
                layers.append(layer)
            else:
                writer.skip(part.n_rows)
        if layers:
            for batch in stream.activations(part, layers):
                for layer, rows in batch.items():
                    wanted[layer].add(rows)


def _split(window: Window, batch_size: int) -> Iterator[Window]:
    """Cut a window of sequences of one length into its batches; return any other as it is, because it is sorted."""
    sequences = window.sequences
    if any(len(ids) != len(sequences[0]) for ids in sequences):
        yield window
        return
    counts = window.counts or [window.n_rows // len(sequences)] * len(sequences)
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        of_batch = counts[start : start + batch_size]
        yield Window(window.first + start, batch, sum(of_batch), of_batch)
