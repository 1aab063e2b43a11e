"""Nested groups of latents: each prefix of the dictionary reconstructs the inputs alone (Matryoshka)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from geofloor._training.products import add_product, product
from geofloor._validation import check_array_of_numbers, shown


def check_groups(groups: Any) -> tuple[int, ...] | None:
    """Check the lengths of the prefixes, and return them as plain numbers.

    Raises
    ------
    ValueError
        If they are not increasing whole numbers of at least 1.
    """
    if groups is None:
        return None
    lengths = check_array_of_numbers(groups, "groups", column=False)
    if (lengths < 1).any() or (lengths > 2**53).any() or (lengths % 1).any() or (lengths[1:] <= lengths[:-1]).any():
        raise ValueError(
            f"groups={shown(groups)} must be increasing whole numbers of at least 1: the numbers of latents of the "
            "prefixes, such as (256, 1024, 4096)."
        )
    return tuple(int(length) for length in lengths)


def prefix_errors(
    codes: torch.Tensor, directions: torch.Tensor, centered: torch.Tensor, groups: tuple[int, ...]
) -> list[torch.Tensor]:
    """Compute x̂ − x, (n_rows, n_inputs), of the reconstruction by each prefix of the latents."""
    errors = [product(codes[:, : groups[0]], directions[: groups[0]]).sub_(centered)]
    for start, stop in pairwise(groups):
        errors.append(product(codes[:, start:stop], directions[start:stop]).add_(errors[-1]))
    return errors


def differentiate_errors(
    errors: list[torch.Tensor],
    codes: torch.Tensor,
    directions: torch.Tensor,
    groups: tuple[int, ...],
    on_directions: torch.Tensor,
    n_rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of the prefixes' squared errors, summed over prefixes and averaged over `n_rows`.

    A latent has a part in every prefix that contains it, so that its gradients need the sum of their errors.

    Parameters
    ----------
    errors : list of Tensor of shape (n_in_piece, n_inputs)
        Result of `prefix_errors`, overwritten.
    codes : Tensor of shape (n_in_piece, n_latents)
        Codes, overwritten.
    directions : Tensor of shape (n_latents, n_inputs)
        Directions of the latents.
    groups : tuple of int
        Number of latents of each prefix.
    on_directions : Tensor of shape (n_latents, n_inputs)
        Sum that the gradients of the directions are added to.
    n_rows : int
        Number of rows of the whole batch.

    Returns
    -------
    on_codes : Tensor of shape (n_in_piece, n_latents)
        Gradients of the codes, in the memory of `codes` if it can be used.
    on_reconstruction : Tensor of shape (n_in_piece, n_inputs)
        Sum over prefixes of the gradients of their reconstructions.
    """
    for error in errors:
        error.mul_(2.0 / n_rows)
    if len(groups) == 1:
        add_product(on_directions, codes, errors[0])
        return product(errors[0], directions.T, spare=codes), errors[0]
    for longer, shorter in pairwise(reversed(errors)):
        shorter.add_(longer)
    for (start, stop), error in zip(pairwise((0, *groups)), errors, strict=True):
        add_product(on_directions[start:stop], codes[:, start:stop], error)
        codes[:, start:stop] = product(error, directions[start:stop].T)
    return codes, errors[0]
