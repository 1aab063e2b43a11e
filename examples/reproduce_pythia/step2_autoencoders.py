"""
Step 2: tokens → sparse autoencoders
====================================

Train one autoencoder per layer, on activations made on the fly. Save each as soon as it is trained, and then remove its
checkpoint. Under ``accelerate launch``, all processes train, and the first one writes.
"""

import shutil

import numpy as np
from activations import Activations
from options import dtype_of, n_sequences_of
from step1_tokens import sequences

from geofloor import ActivationExtractor, SparseAutoencoder


def autoencoder_path(folder, layer):
    return folder / f"sae-layer-{layer}.safetensors"


def train_autoencoders(
    folder,
    *,
    model,
    layers,
    expansion,
    l1_coefficient,
    sae_learning_rate,
    sae_tokens,
    sae_length,
    sae_batch,
    sae_checkpoint_every,
    skip_first,
    eval_sequences,
    forward_batch,
    precision,
    seed,
    device,
    is_main,
):
    """Write ``sae-layer-*.safetensors``."""
    n_sequences = n_sequences_of(sae_tokens, sae_length, skip_first)
    order = np.random.default_rng(seed).permutation(n_sequences)
    chosen = sequences(folder, eval_sequences, sae_length, 0, n_sequences)
    extractor = ActivationExtractor(
        model,
        layers[0],
        skip_first=skip_first,
        batch_size=forward_batch,
        max_length=sae_length,
        dtype=dtype_of(precision),
        device=device,
    )
    for layer in layers:
        path = autoencoder_path(folder, layer)
        checkpoint = folder / "autoencoders" / f"layer-{layer}.safetensors"
        if not path.exists():
            n_done = SparseAutoencoder.steps_done(checkpoint) if is_main else 0
            if n_done:
                print(f"layer {layer}: resuming at step {n_done:,}", flush=True)
            autoencoder = SparseAutoencoder.paper(
                expansion=expansion,
                l1_coefficient=l1_coefficient,
                learning_rate=sae_learning_rate,
                batch_size=sae_batch,
                checkpoint_path=checkpoint,
                checkpoint_every=sae_checkpoint_every,
                random_state=seed,
                device=device,
                verbose=1,
            ).fit(Activations(extractor.set_params(layer=layer), chosen, order, sae_batch))
            if is_main:
                autoencoder.save(path)
                last = autoencoder.history_[-1]
                shares = f"L0 {last['l0']:.1f}, {last['dead']:.1%} dead"
                print(f"layer {layer}: {autoencoder.n_tokens_seen_:,} tokens, {shares}")
                checkpoint.unlink()
    if is_main:
        shutil.rmtree(checkpoint.parent, ignore_errors=True)  # with leftovers of killed processes
