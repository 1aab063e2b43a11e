"""Whether a dictionary belongs to the activations that it is used on, by its file and by its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from geofloor._validation import shown, warn_caller
from geofloor.features._dictionary_sums import Dictionary
from geofloor.language_models._hook_names import MODULES, read_hook


def check_fit(dictionary: Dictionary, extractor: Any, rows: np.ndarray) -> None:
    """Warn if a dictionary was plainly not trained on these activations, by its `source_` and by the first of them."""
    check_source(dictionary.autoencoder, extractor)
    explained = dictionary.explained_variance(rows)
    if explained < 0.0:
        warn_caller(
            f"autoencoder has the explained variance {explained:.2g} on the first {len(rows)} activations of "
            f"'{extractor.module_name_}' (layer={extractor.layer_}, output={extractor.output!r}): their mean is nearer "
            "to them. It was not trained on these activations: layer? hook? model? normalization?",
            UserWarning,
        )


def check_source(autoencoder: Any, extractor: Any) -> None:
    """Warn if a dictionary names another layer, output or model than those it is used on.

    Parameters
    ----------
    autoencoder : object
        A dictionary, maybe with `source_`.
    extractor : ActivationExtractor
        Fitted, with one layer.
    """
    source = getattr(autoencoder, "source_", None)
    if not isinstance(source, Mapping):
        return
    hook, model = source.get("hook"), source.get("model")
    if isinstance(hook, str):
        place, module = read_hook(hook), extractor.module_name_
        # Before the normalization of Gemma 2 and its heirs lies another place, to which Hugging Face's names refer.
        unnormed = place.output in MODULES and "hook_" not in hook and "layernorm" not in hook
        other = (
            place.elsewhere
            or place.layer not in (None, extractor.layer_)
            or place.output not in (None, extractor.output)
            or (unnormed and module.endswith("layernorm"))
        )
        if other:
            told = [
                f"{name}={getattr(place, name)!r}" for name in ("layer", "output") if getattr(place, name) is not None
            ]
            warn_caller(
                f"autoencoder was trained on hook={shown(hook)}{' (' * bool(told)}{', '.join(told)}{')' * bool(told)}, "
                f"says its source_, and these are activations of '{module}' (layer={extractor.layer_}, "
                f"output={extractor.output!r}); set layer and output to its place, or take the dictionary of this one.",
                UserWarning,
            )
    teacher = getattr(extractor.model_, "name_or_path", None)
    if isinstance(model, str) and isinstance(teacher, str) and is_another_model(model, teacher):
        warn_caller(
            f"autoencoder was trained on model={shown(model)}, says its source_, and the teacher is {shown(teacher)}; "
            "use the teacher that it was trained on.",
            UserWarning,
        )


_FAMILY = re.compile(
    r"(?<![a-z])(pythia|gemma|llama|qwen|mistral|mixtral|smollm|olmo|gpt-?neo|gpt-?j|gpt|phi|opt|bloom|falcon|stablelm|tinystories)"
    r"[-_ ]?v?(\d+(?:[._]\d+)?)?(?![\dbm])"
)
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])")


def is_another_model(first: str, second: str) -> bool:
    """Return whether two names plainly are of different models, by family, version or size.

    Names that tell none of these, such as that of a folder, are not.
    """
    told = [_tell(name) for name in (first, second)]
    (families, versions, sizes, deduped), (families2, versions2, sizes2, deduped2) = told
    if families and families2 and families.isdisjoint(families2):
        return True
    for family in families & families2:
        both = versions.get(family), versions2.get(family)
        if None not in both and both[0] != both[1]:
            return True
    if "pythia" in families & families2 and deduped != deduped2:
        return True
    return bool(sizes and sizes2 and sizes.isdisjoint(sizes2))


def _tell(name: str) -> tuple[set[str], dict[str, str], set[float], bool]:
    """Find families, their versions, sizes in millions, and whether the training data was deduplicated."""
    parts = [part for part in name.replace("\\", "/").lower().split("/") if part]
    cached = [part for part in parts if part.startswith("models--")]  # of a snapshot in the hub's cache
    last = (cached or parts or [""])[-1].rpartition("--")[2]
    found = _FAMILY.findall(last)
    versions = {family.replace("-", ""): version.replace("_", ".") for family, version in found}
    sizes = {float(number) * (1000.0 if unit == "b" else 1.0) for number, unit in _SIZE.findall(last)}
    return set(versions), {key: value for key, value in versions.items() if value}, sizes, "deduped" in last
