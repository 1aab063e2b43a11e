"""Encode rows into sparse matrices of codes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from geofloor.features._encoding import Rule, encode_by
from geofloor.features._selection import Selection
from geofloor.features._sparse_step import Parameters
from geofloor.features._threads import KernelThreads

_WORTH_KERNELS = 2**22  # pre-activations; with fewer, loading numba takes longer
_LATENTS_PER_CODE = 4  # with fewer, the kernel searches most of a row


def encode_sparse(rule: Rule, parameters: Parameters, inputs: torch.Tensor) -> sp.csr_array:
    """Encode rows as `encode_by` does, into a CSR array of the codes other than zero.

    Many rows of few codes each take the compiled selection on CPUs, which is faster than torch's.
    """
    n_rows, n_latents = len(inputs), len(parameters.encoder_bias)
    l0 = rule.l0 if rule.activation == "topk" else None
    few = l0 is not None and _LATENTS_PER_CODE * l0 <= n_latents
    if l0 is None or not few or inputs.device.type != "cpu" or n_rows * n_latents < _WORTH_KERNELS:
        return _to_csr(encode_by(rule, parameters, inputs))
    threads = KernelThreads()
    try:
        selection = Selection(parameters, threads, activation="topk", l0=l0, precision="float32")
        selected = selection.select(inputs - parameters.decoder_bias, None)
    finally:
        threads.close()
    if selected is None:
        raise RuntimeError("TopK keeps its codes, however many they are")
    latents, values, _, counts = selected[0]
    stored = (np.arange(l0) < counts[:, None]).ravel()
    starts = np.concatenate([[0], counts.cumsum(dtype=np.int64)])
    index = _index_type(int(starts[-1]))
    codes = sp.csr_array(
        (values[stored], latents[stored].astype(index, copy=False), starts.astype(index)), shape=(n_rows, n_latents)
    )
    codes.sort_indices()
    if rule.code_scale is not None:
        codes.data *= rule.code_scale.numpy()[codes.indices]
        codes.eliminate_zeros()
    return codes


def _to_csr(codes: torch.Tensor) -> sp.csr_array:
    """Move codes other than zero from a dense tensor on any device into CSR."""
    fires = codes != 0
    data, columns = codes[fires].cpu().numpy(), fires.nonzero()[:, 1].cpu().numpy()
    starts = np.concatenate([[0], fires.sum(dim=1).cumsum(dim=0).cpu().numpy()])
    index = _index_type(len(data))
    return sp.csr_array((data, columns.astype(index), starts.astype(index)), shape=(codes.shape[0], codes.shape[1]))


def _index_type(n_codes: int) -> type[np.integer]:
    return np.int32 if n_codes < np.iinfo(np.int32).max else np.int64
