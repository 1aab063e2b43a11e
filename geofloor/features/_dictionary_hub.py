"""Fetch one dictionary of a repository on the Hugging Face hub: its weights, and the configuration beside them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from geofloor.features._dictionary_files import CONFIGS, is_weights

_BESIDE = (*CONFIGS, "activation_scaler.json")


def is_repository(path: Any) -> bool:
    """Tell whether a path names a repository: ``owner/name``, and nothing on this machine."""
    return isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).exists()


def fetch(repository: str, file: str | None, revision: str | None) -> Path:
    """Fetch the weights at `file`, a file or folder, or the only ones of a repository; return their local path.

    Raises
    ------
    FileNotFoundError
        If the repository has no such file.
    OSError
        If it can't be reached, does not exist or needs a login.
    ValueError
        If several files could be meant.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def download(name: str) -> str:
        return hf_hub_download(repository, name, revision=revision)

    advice = f"path={repository!r} can't be fetched from the hub, and is no file or folder here"
    try:
        try:
            names = HfApi().list_repo_files(repository, revision=revision)
        except (OfflineModeIsEnabled, ConnectionError):
            if file is None or not is_weights(file):
                raise
            names = [file]  # may be in the cache of the hub
        chosen = choose(repository, names, file)
        weights = Path(download(chosen))
        folder = PurePosixPath(chosen).parent
        folders = {folder, folder.parent} if folder.name == "checkpoints" else {folder}
        for name in names:
            if PurePosixPath(name).parent in folders and PurePosixPath(name).name in _BESIDE:
                download(name)
    except HFValidationError as error:
        raise ValueError(f"{advice}: {error}.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise OSError(
            f"{advice} ({str(error).splitlines()[0]:.200}); download the weights with their configuration elsewhere, "
            "and give that folder."
        ) from error
    return weights


def choose(repository: str, names: list[str], file: str | None) -> str:
    """Choose the one file of weights that `file` names, itself or as its folder."""
    found = [name for name in names if is_weights(PurePosixPath(name).name)]
    folder = ""
    if file is not None:
        wanted = os.fspath(file).strip("/")
        if wanted in found:
            return wanted
        folder = f"{wanted}/"
        found = [name for name in found if name.startswith(folder)]
    # Those of the folder itself come first, as on this machine.
    found = [name for name in found if "/" not in name.removeprefix(folder)] or found
    if not found:
        where = "" if file is None else f" at file={file!r}"
        raise FileNotFoundError(f"path={repository!r} has no weights{where}.")
    if len(found) > 1:
        shown = ", ".join(map(repr, found[:6])) + (", ..." if len(found) > 6 else "")
        raise ValueError(f"path={repository!r} has {len(found)} files of weights: {shown}; choose one by file.")
    return found[0]
