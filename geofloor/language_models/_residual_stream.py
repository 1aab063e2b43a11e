"""Forward passes that stop after the last module asked for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geofloor._training.devices import memory_advice
from geofloor._training.products import faster_linear, largest_matrix
from geofloor.language_models._blocks import block_output
from geofloor.language_models._hooks import evaluating, hooked
from geofloor.language_models._inputs import Window
from geofloor.language_models._positions import Positions


class _BlocksReached(Exception):  # noqa: N818 - it stops a forward pass that went well
    pass


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a language model after its blocks, or the outputs of modules inside, read by hooks.

    Parameters
    ----------
    model : PreTrainedModel
        The base model, without its head.
    modules : mapping of int to str
        Name of the module to read, by block.
    width : int
        d_model.
    n_vocabulary : int
        Number of tokens that the model embeds.
    device : str
        Device that the model takes its input on.
    positions : Positions
        Positions of each sequence that give activations.
    pooling : {None, "mean", "last"}
        Rows to return: one per token, or one per sequence.
    batch_size : int
        Sequences per forward pass.
    remedy : str
        Advice for an error about too little memory.
    """

    model: Any
    modules: Mapping[int, str]
    width: int
    n_vocabulary: int
    device: str
    positions: Positions
    pooling: str | None
    batch_size: int
    remedy: str

    @property
    def takes_mask(self) -> bool:
        """Whether the model can leave out padding."""
        return "attention_mask" in inspect.signature(self.model.forward).parameters

    def activations(self, window: Window, layers: Collection[int]) -> Iterator[dict[int, np.ndarray]]:
        """Yield the rows of one window in input order, after sorting sequences by length to need little padding."""
        lengths = np.array([len(ids) for ids in window.sequences])
        counts = np.array([self.positions.n_rows(ids) for ids in window.sequences])
        used = np.flatnonzero(counts)
        starts = np.cumsum(counts) - counts
        order = used[np.argsort(-lengths[used], kind="stable")]
        sorted_already = bool((np.diff(order) > 0).all())  # blocks of one length are
        shape = (0 if sorted_already else window.n_rows, self.width)
        ordered = {layer: np.empty(shape, dtype=np.float32) for layer in layers}
        takes_mask = self.takes_mask
        end = 0
        while end < len(order):
            members = order[end : end + self.batch_size]
            if not takes_mask:  # it would read padding as text
                members = members[lengths[members] == lengths[members[0]]]
            end += len(members)
            batch = {}
            for layer, rows in self.rows([window.sequences[i] for i in members], layers).items():
                if not bool(torch.isfinite(rows).all()):
                    indices = ", ".join(str(window.first + i) for i in sorted(members))
                    raise ValueError(
                        f"activations after layer={layer} of the batch of sequences X[{indices}] are not finite; "
                        "check the weights, or run the model in a dtype with more range, such as float32."
                    )
                batch[layer] = rows.to("cpu", torch.float32).numpy()
            if sorted_already:
                yield batch
                continue
            for layer, values in batch.items():
                for i, piece in zip(members, np.split(values, np.cumsum(counts[members])[:-1]), strict=True):
                    ordered[layer][starts[i] : starts[i] + counts[i]] = piece
        if not sorted_already:
            yield ordered

    def rows(self, sequences: list[np.ndarray], layers: Collection[int]) -> dict[int, torch.Tensor]:
        """Run one batch, and return its rows of each layer, without padding and skipped positions."""
        model = self.model
        config = model.config.get_text_config()
        kind = config.model_type
        lengths = np.array([len(ids) for ids in sequences])
        pad = getattr(config, "pad_token_id", None)
        pad = pad if isinstance(pad, int) and 0 <= pad < self.n_vocabulary else 0  # some models count positions from it
        ids = np.full((len(sequences), lengths.max()), pad, dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        real = np.arange(ids.shape[1]) < lengths[:, None]
        mask, kept = (torch.from_numpy(each).to(self.device) for each in (real, real & self.positions.kept(ids)))
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if self.takes_mask:
            inputs["attention_mask"] = mask.long()
        if "use_cache" in inspect.signature(model.forward).parameters:
            inputs["use_cache"] = False
        found: dict[int, torch.Tensor] = {}

        def read(layer: int, output: Any) -> None:
            hidden = block_output(output)
            if hidden.shape != (*ids.shape, self.width):
                raise ValueError(
                    f"'{self.modules[layer]}' of model type {kind!r} gives hidden states of shape "
                    f"{tuple(hidden.shape)}, not (n_sequences, seq_len, d_model) = {(*ids.shape, self.width)}."
                )
            if layer not in found:
                # Copied at once, because a later block may change its input in place.
                found[layer] = self._pool(hidden, kept.to(hidden.device))
            if len(found) == len(layers):
                raise _BlocksReached

        # Hooks and evaluation mode are set for each batch, since the caller may use the model between batches.
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(_BlocksReached))
            stack.enter_context(evaluating(model))
            for layer in layers:
                module = model.get_submodule(self.modules[layer])
                stack.enter_context(hooked(module, lambda _, __, output, layer=layer: read(layer, output)))
            stack.enter_context(memory_advice(self.remedy))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(faster_linear(ids.size, largest_matrix(model), inputs["input_ids"].device))
            model(**inputs)
        for layer in layers:
            if layer not in found:
                raise ValueError(f"the forward pass of model type {kind!r} never ran '{self.modules[layer]}'.")
        return {layer: found[layer] for layer in layers}

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Copy one row per position that counts, or pool them to one row per sequence."""
        hidden, mask = hidden[:, self.positions.skip_first :], mask[:, self.positions.skip_first :]
        if self.pooling is None:
            return hidden[mask]
        if self.pooling == "last":
            rows, columns = (torch.arange(n, device=hidden.device) for n in mask.shape)
            return hidden[rows, torch.where(mask, columns, -1).amax(1)]
        return hidden.float().masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1)[:, None]
