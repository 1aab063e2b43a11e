"""
Step 3: autoencoders → statistics and floors
============================================

Measure each layer's features on held-out tokens (Tables 1 and 2). Predict the floor of each width, first by Eq. 2, then
in nats per token, by ablating from the teacher the features dropped at that width.
"""

import numpy as np
import pandas as pd
from activations import Activations
from options import dtype_of, n_sequences_of
from results import atomic_path, write_table
from safetensors.numpy import save_file
from step1_tokens import evaluation_blocks, sequences
from step2_autoencoders import autoencoder_path

from geofloor import AblationPredictor, ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder


def features_path(folder, layer):
    return folder / f"features-layer-{layer}.safetensors"


def measure_features(
    folder,
    *,
    model,
    layers,
    sae_tokens,
    sae_length,
    sae_batch,
    statistics_tokens,
    skip_first,
    widths,
    temperature,
    ablation_sequences,
    ablation_points,
    eval_sequences,
    forward_batch,
    precision,
    device,
):
    """Write ``features-layer-*.safetensors``, ``ablation-layer-*.csv``, ``layers.csv`` and ``predicted.csv``."""
    start, n_sequences = (n_sequences_of(n, sae_length, skip_first) for n in (sae_tokens, statistics_tokens))
    held_out = sequences(folder, eval_sequences, sae_length, start, start + n_sequences)
    extractor = ActivationExtractor(
        model,
        layers[0],
        skip_first=skip_first,
        batch_size=forward_batch,
        max_length=sae_length,
        dtype=dtype_of(precision),
        device=device,
    )
    layers_table, predicted = [], []
    for layer in layers:
        autoencoder = SparseAutoencoder.load(autoencoder_path(folder, layer), device=device)
        activations = Activations(extractor.set_params(layer=layer), held_out, np.arange(n_sequences), sae_batch)
        statistics = FeatureStatistics().fit(autoencoder.transform(batch) for batch in activations)
        with atomic_path(features_path(folder, layer)) as partial:
            save_file({"latent": statistics.alive_, "table": statistics.table_}, partial)
        layers_table.append(
            {
                "layer": layer,
                "n_tokens": statistics.n_tokens_,
                "explained_variance": autoencoder.score(activations.first(2)),
                "n_features": statistics.n_alive_,
                "mean_l0": statistics.mean_l0_,
                "alpha": statistics.alpha_,
                "capacity": statistics.capacity_,
                "critical_width": statistics.critical_width_,
                "tail_exponent": statistics.tail_exponent_,
            }
        )
        ablation = AblationPredictor(
            model,
            layer,
            autoencoder,
            statistics,
            temperature=temperature,
            n_points=ablation_points,
            skip_first=skip_first,
            batch_size=forward_batch,
            model_kwargs={"dtype": dtype_of(precision)},
            device=device,
            verbose=1,
        ).fit(evaluation_blocks(folder, eval_sequences)[:ablation_sequences])
        write_table(folder / f"ablation-layer-{layer}.csv", ablation.curve_)
        predicted.append(predict_floors(statistics, ablation, sorted(set(widths))).assign(layer=layer))
    write_table(folder / "layers.csv", pd.DataFrame(layers_table))
    table = pd.concat(predicted)
    write_table(folder / "predicted.csv", table[["layer", *table.columns.drop("layer")]])


def predict_floors(statistics, ablation, widths):
    """Tabulate Eq. 2 and the ablation by width."""
    floor = FloorPredictor().fit(statistics.table_)
    kept, floors = floor.kept_features(widths), floor.predict(widths)
    return pd.DataFrame(
        {
            "width": widths,
            "kept": kept,
            "dropped": statistics.n_alive_ - kept,
            "floor": floors,
            "normalized": floors / floors[0] if floors[0] else floors,
            "nats": ablation.predict(widths),
        }
    )
