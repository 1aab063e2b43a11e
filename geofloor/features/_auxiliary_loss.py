"""Give dead latents gradients by an auxiliary loss: they reconstruct the error of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from geofloor._training.products import linear, product

if TYPE_CHECKING:
    from geofloor.features._sparse_step import Parameters


class AuxiliaryLoss:
    """Auxiliary loss AuxK of one batch, α‖e − ê‖², and its gradients, summed over pieces of the batch.

    e = x − x̂ is the error of the reconstruction, as a constant. ê = Σ_j z_j d_j is its reconstruction by the dead
    latents with the largest pre-activations, n_inputs // 2 per row or all of them if fewer are dead. The codes z are
    their pre-activations through ReLU. The loss is summed over inputs and averaged over the batch (Gao et al. 2024,
    Appendix A.2). The decoder bias has no part in ê and no gradient, because the other latents determine it.

    Parameters
    ----------
    parameters : Parameters
        Weights of the autoencoder.
    dead : Tensor of shape (n_latents,), bool
        Mask of the dead latents, at least one.
    coefficient : float
        Weight α of the loss.
    """

    def __init__(self, parameters: Parameters, dead: torch.Tensor, coefficient: float) -> None:
        self._coefficient = coefficient
        self._dead = dead.nonzero().squeeze(1)
        self._n_codes = min(len(self._dead), max(parameters.encoder_weight.shape[1] // 2, 1))
        self._weight, self._bias, self._directions = (each[self._dead] for each in parameters[:3])
        self._sums = [torch.zeros_like(each) for each in (self._weight, self._bias, self._directions)]

    def add(self, centered: torch.Tensor, error: torch.Tensor, n_rows: int) -> None:
        """Add the gradients of a piece of a batch of `n_rows`, given x − b_dec and x̂ − x, (n_in_piece, n_inputs)."""
        codes = linear(centered, self._weight, self._bias).relu_()
        if self._n_codes < len(self._dead):
            largest = codes.topk(self._n_codes, dim=1, sorted=False)
            codes = codes.zero_().scatter_(1, largest.indices, largest.values)
        on_reconstruction = product(codes, self._directions).add_(error).mul_(2.0 * self._coefficient / n_rows)
        on_codes = product(on_reconstruction, self._directions.T).mul_(codes > 0)
        on_weight, on_bias, on_directions = self._sums
        on_weight.addmm_(on_codes.T, centered)
        on_bias.add_(on_codes.sum(dim=0))
        on_directions.addmm_(codes.T, on_reconstruction)

    def add_to(self, gradients: Parameters) -> None:
        """Add the summed gradients to those of the loss, in place."""
        for gradient, of_dead in zip(gradients[:3], self._sums, strict=True):
            gradient.index_add_(0, self._dead, of_dead)
