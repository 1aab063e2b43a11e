"""Places in a language model: the modules read, and the names that libraries give them."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

from geofloor._validation import check_object

OUTPUTS = ("residual", "mlp", "attention")

MODULES = {
    "mlp": ("mlp", "feed_forward", "feedforward", "ffn", "block_sparse_moe"),
    "attention": ("self_attn", "self_attention", "attention", "attn"),
}
# Normalizations between a module and the residual stream. The last of them is elsewhere in a block like Llama's.
_NORMS = {"mlp": ("post_mlp_layernorm", "post_feedforward_layernorm"), "attention": ("post_self_attn_layernorm",)}
_NORM_OF_GEMMA = "post_attention_layernorm"

_TRANSFORMER_LENS = {
    "hook_resid_post": (0, "residual"),
    "hook_resid_pre": (-1, "residual"),
    "hook_mlp_out": (0, "mlp"),
    "hook_attn_out": (0, "attention"),
}
_DICTIONARY_LEARNING = {"resid_post": "residual", "mlp_out": "mlp", "attn_out": "attention"}


def output_module(model: Any, block: str, output: str) -> str:
    """Return the name of the module whose output is read.

    Parameters
    ----------
    model : PreTrainedModel
        The base model.
    block : str
        Name of a block within it.
    output : {"residual", "mlp", "attention"}
        Output of the block, or what its MLP or attention adds to the residual stream.

    Raises
    ------
    ValueError
        If the block has no such module, or the module adds its input to its output.
    """
    if output == "residual":
        return block
    children = dict(model.get_submodule(block).named_children())
    found = [name for name in MODULES[output] if name in children]
    if len(found) != 1:
        raise ValueError(
            f"output={output!r} can't be found: '{block}' of model type {model.config.model_type!r} holds the modules "
            f"{sorted(children)}, and {'several' if found else 'none'} of them named as its {output} is elsewhere "
            f"({', '.join(MODULES[output])}); use output='residual'."
        )
    if _adds_its_input(children[found[0]]):
        raise ValueError(
            f"output={output!r} can't be read: '{block}.{found[0]}' of model type {model.config.model_type!r} gives "
            "the sum of its output and the residual stream; use output='residual'."
        )
    norms = _NORMS[output]
    if output == "attention" and "post_feedforward_layernorm" in children:
        norms = (*norms, _NORM_OF_GEMMA)
    return f"{block}.{next((name for name in norms if name in children), found[0])}"


def _adds_its_input(module: Any) -> bool:
    """Return whether a module adds the residual stream, as those of BLOOM, MPT and BERT do."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == "LayerNorm":  # of BERT and its heirs, after the sum
            return True
        if not {"residual", "input_tensor"}.isdisjoint(inspect.signature(part.forward).parameters):
            return True
    return False


class Place(NamedTuple):
    """A place by its name, as far as it tells."""

    layer: int | None = None
    output: str | None = None
    elsewhere: bool = False  # surely no output of `OUTPUTS`


def parse_hook(hook: str) -> tuple[int, str] | None:
    """Read a hook's name as arguments of `ActivationExtractor <geofloor.ActivationExtractor>`.

    Parameters
    ----------
    hook : str
        Name by TransformerLens and SAELens, ``transformers``, sparsify or dictionary_learning, such as
        ``source_["hook"]`` of a dictionary from `load_autoencoder <geofloor.features.load_autoencoder>`. The Notes of
        `ActivationExtractor <geofloor.ActivationExtractor>` have a table.

    Returns
    -------
    place : tuple of (int, str) or None
        `layer` and `output`. None if the name is unknown, or of a place that the extractor doesn't read.

    Raises
    ------
    TypeError
        If `hook` is no text.

    Examples
    --------
    >>> from geofloor.language_models import parse_hook
    >>> parse_hook("blocks.12.hook_resid_pre")
    (11, 'residual')
    >>> parse_hook("layers.12.mlp")
    (12, 'mlp')
    >>> parse_hook("blocks.12.attn.hook_z") is None
    True
    """
    place = read_hook(check_object("hook", hook, str, "give the name of a hook, such as 'blocks.3.hook_mlp_out'"))
    if place.layer is None or place.output is None:
        return None
    return place.layer, place.output


def read_hook(hook: str) -> Place:
    """Read a hook's name as far as it tells its place."""
    if found := re.fullmatch(r"layer (\d{1,6})", hook):  # all that some files tell
        return Place(int(found[1]))
    if found := re.fullmatch(r"(resid_post|mlp_out|attn_out)_layer_(\d{1,6})", hook):
        return Place(int(found[2]), _DICTIONARY_LEARNING[found[1]])
    found = re.fullmatch(r"(?:\w+\.)*?(?:layers?|h|blocks?)\.(\d{1,6})((?:\.\w+)*)", hook)
    if found is None:
        return Place(elsewhere=hook.rpartition(".")[2] in ("embed_tokens", "embed_in", "wte", "hook_embed"))
    layer, rest = int(found[1]), found[2][1:]
    if rest == "input":
        return _before(layer, 1, "residual")
    if rest in _TRANSFORMER_LENS:
        shift, output = _TRANSFORMER_LENS[rest]
        return _before(layer, -shift, output)
    if "hook_" in rest or rest.endswith("input"):
        return Place(layer, elsewhere=True)
    rest = re.sub(r"(^|\.)output$", "", rest)
    if not rest:
        return Place(layer, "residual")
    return Place(layer, next((name for name in MODULES if rest in (*MODULES[name], *_NORMS[name])), None))


def _before(layer: int, n: int, output: str) -> Place:
    """Go back `n` blocks; before the first is the embedding."""
    return Place(layer - n, output) if layer >= n else Place(elsewhere=True)
