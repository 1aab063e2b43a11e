"""Encode with a fitted dictionary: rules that choose codes among pre-activations, those of published files included.

The rules are

- ``"relu"``: all above zero;
- ``"batchtopk"`` and ``"jumprelu"``: those above a threshold per latent;
- ``"topk"``: the largest of each row above zero;
- ``"groupmax"``: latents are cut into groups of equal size, and the largest of each group above zero is kept;
- ``"linear_topk"``: the largest of each row, also below zero;
- ``"abstopk"``: the largest of each row by magnitude, with their signs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from geofloor._training.products import linear
from geofloor.features._sparse_step import Parameters, encode

CHOSEN = ("topk", "groupmax", "linear_topk", "abstopk")  # a fixed number of codes per row, at most
ENCODABLE = ("relu", "batchtopk", "jumprelu", *CHOSEN)


class Rule(NamedTuple):
    """Rule of a fitted dictionary, on the scale of the data.

    Attributes
    ----------
    activation : str
        One of `ENCODABLE`.
    l0 : int or None
        Codes per row, for the rules that keep a fixed number.
    threshold : Tensor of shape (n_latents,) or None
        Number that a code must exceed.
    code_scale : Tensor of shape (n_latents,) or None
        Factor on chosen codes.
    """

    activation: str
    l0: int | None = None
    threshold: torch.Tensor | None = None
    code_scale: torch.Tensor | None = None


def encode_by(rule: Rule, parameters: Parameters, inputs: torch.Tensor) -> torch.Tensor:
    """Compute codes, (n_rows, n_latents), of inputs, (n_rows, n_inputs)."""
    if rule.activation in ("relu", "batchtopk", "jumprelu"):
        codes = encode(parameters, inputs, None, rule.threshold)
    elif rule.activation == "topk":
        codes = encode(parameters, inputs, rule.l0)
    elif rule.activation == "groupmax":
        codes = _keep_largest_of_groups(encode(parameters, inputs), rule.l0 or 1)
    else:
        centered = inputs - parameters.decoder_bias
        codes = linear(centered, parameters.encoder_weight, parameters.encoder_bias)
        ranked = codes.abs() if rule.activation == "abstopk" else codes
        chosen = ranked.topk(min(rule.l0 or 1, codes.shape[1]), dim=1, sorted=False).indices
        codes = torch.zeros_like(codes).scatter_(1, chosen, codes.gather(1, chosen))
    return codes if rule.code_scale is None else codes.mul_(rule.code_scale)


def _keep_largest_of_groups(codes: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Keep the largest code of each of `n_groups` groups of consecutive latents."""
    largest = codes.unflatten(1, (n_groups, -1)).max(dim=2)
    offsets = torch.arange(n_groups, device=codes.device) * (codes.shape[1] // n_groups)
    return torch.zeros_like(codes).scatter_(1, largest.indices + offsets, largest.values)
