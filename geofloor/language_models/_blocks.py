"""Blocks of transformers models: find them, choose some, and read or replace their hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from geofloor._validation import check_number, shown


def find_blocks(model: Any) -> tuple[str, int]:
    """Return the name and the length of the list of blocks in a transformers base model."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"model is of type {kind!r}, an encoder and a decoder; pass one of them, such as model.get_encoder()."
        )
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_blocks
    ]
    # Lists inside a block (experts, say) are not lists of blocks.
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(found) != 1 or not n_blocks:
        what = f"the lists {found}, any of which may be" if found else "no list of modules that is"
        raise ValueError(
            f"model is of type {kind!r}, which has {what} its num_hidden_layers={n_blocks} blocks; pass the language "
            "model inside it, or a model of another type."
        )
    return found[0], n_blocks


def check_layers(layer: Any) -> dict[str, int]:
    """Return the indices in `layer` by their names in messages: ``layer``, or ``layer[0]`` and so on for a list."""
    is_list = isinstance(layer, Sequence) and not isinstance(layer, str | bytes)
    is_array = isinstance(layer, Iterable) and bool(getattr(layer, "shape", ()))
    if not is_list and not is_array:
        return {"layer": check_number("layer", layer, whole=True)}
    names = {f"layer[{i}]": check_number(f"layer[{i}]", index, whole=True) for i, index in enumerate(layer)}
    if not names:
        raise ValueError(f"layer={shown(layer)} names no block; give the index of at least one.")
    return names


def resolve_layers(indices: Mapping[str, int], n_blocks: int) -> list[int]:
    """Return the indices of `check_layers` counted from 0, and refuse missing and repeated blocks."""
    names: dict[int, str] = {}
    for name, index in indices.items():
        if not -n_blocks <= index < n_blocks:
            raise ValueError(
                f"{name}={index} is not there: the model has {n_blocks} blocks, 0 to {n_blocks - 1} "
                f"(or -{n_blocks} to -1)."
            )
        block = index % n_blocks
        if block in names:
            first = names[block]
            raise ValueError(f"{first}={indices[first]} and {name}={index} are the same block; leave one of them out.")
        names[block] = name
    return list(names)


def block_output(output: Any) -> torch.Tensor:
    """Return the hidden states in the output of a block: the tensor, or the first item of the tuple."""
    return output if isinstance(output, torch.Tensor) else output[0]


def with_block_output(output: Any, hidden: torch.Tensor) -> Any:
    """Return the output of a block with other hidden states in it."""
    return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


class BlockSwap:
    """A hook to record the hidden states after a block, or to replace them by `given`."""

    def __init__(self) -> None:
        self.seen = torch.empty(0)
        self.given: torch.Tensor | None = None

    def __call__(self, block: torch.nn.Module, arguments: Any, output: Any) -> Any:
        if self.given is None:
            self.seen = block_output(output)
            return None
        return with_block_output(output, self.given)
