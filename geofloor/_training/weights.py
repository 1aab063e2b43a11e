"""Digests of models: their weights and configuration."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch

_NUMBERS_AT_ONCE = 2**24
# Entries of a configuration without effect on the model's output.
_NOT_COMPARED = frozenset(
    {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states"}
    | {"problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache"}
)


def model_sha256(module: torch.nn.Module) -> str:
    """Digest a model's class, configuration, and every parameter and buffer: name, dtype, shape and bytes.

    Weights offloaded to torch's meta device count by name, dtype and shape only.
    """
    digest = hashlib.sha256(type(module).__name__.encode())
    tensors: dict[str, Any] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(module, transformers.PreTrainedModel):
        config = {name: value for name, value in module.config.to_dict().items() if name not in _NOT_COMPARED}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        # Other buffers are computed from the configuration, and devices round them differently.
        kept = module.state_dict().keys()
        tensors = {name: tensor for name, tensor in tensors.items() if name in kept}
    for name, tensor in tensors.items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        for piece in [] if tensor.is_meta else tensor.detach().reshape(-1).split(_NUMBERS_AT_ONCE):
            digest.update(piece.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
