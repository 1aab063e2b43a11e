"""Write small random dictionaries as other libraries do, with codes and reconstructions by their authors' formulas.

Each writer makes a file with biases other than zero and directions of unequal norm. It returns the path, the codes
times the norms of the directions, and the reconstructions.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file

D, F, K = 6, 20, 4
X = np.random.default_rng(9).normal(size=(50, D)).astype(np.float32)


class Published(NamedTuple):
    path: Path
    codes: np.ndarray
    reconstruction: np.ndarray
    options: dict


def weights(seed=0):
    rng = np.random.default_rng(seed)
    encoder, decoder = rng.normal(size=(2, F, D))
    decoder *= rng.uniform(0.3, 2.0, size=(F, 1))
    made = {"E": encoder, "D": decoder, "b": 0.3 * rng.normal(size=F), "d": rng.normal(size=D)}
    made |= {"t": rng.uniform(0.1, 1.0, size=F), "r": 0.3 * rng.normal(size=F), "g": 0.5 * rng.normal(size=F)}
    return {name: each.astype(np.float32) for name, each in made.items()}


def relu(values):
    return np.maximum(values, 0.0)


def largest(values, k, ranked=None):
    kept = np.argsort(-(values if ranked is None else ranked), axis=1)[:, :k]
    codes = np.zeros_like(values)
    np.put_along_axis(codes, kept, np.take_along_axis(values, kept, axis=1), axis=1)
    return codes


def write(folder, name, tensors, config=None, config_name="cfg.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: value.copy() if isinstance(value, np.ndarray) else value for key, value in tensors.items()
    }  # a transposed array has another order in memory
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        as_torch = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in tensors.items()
        }
        torch.save(as_torch, path)
    if config is not None:
        (path.parent / config_name).write_text(json.dumps(config))
    return folder


def published(path, w, codes, *, bias="d", scale=1.0, **options):
    """Decode codes by the file's own directions."""
    norms = np.linalg.norm(w["D"], axis=1)
    return Published(path, codes * norms / scale, (codes @ w["D"] + w[bias]) / scale, options)


def saelens(folder, kind, /, *, centered=True, rescaled=False, **changes):
    w = weights()
    config = {"architecture": kind, "d_in": D, "d_sae": F, "apply_b_dec_to_input": centered}
    config |= {"normalize_activations": "none", "metadata": {"model_name": "m", "hook_name": "blocks.3.hook_mlp_out"}}
    tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"]}
    inputs = X - w["d"] if centered else X
    pre = inputs @ w["E"].T + w["b"]
    norms = np.linalg.norm(w["D"], axis=1)
    if kind == "standard":
        codes = relu(pre)
    elif kind == "jumprelu":
        codes, tensors["threshold"] = relu(pre) * (pre > w["t"]), w["t"]
    elif kind == "batchtopk":  # a file of a training, with codes scaled by norms
        scaled = pre * norms
        codes, tensors["topk_threshold"] = relu(pre) * (scaled > 0.4), np.array(0.4)
    elif kind == "gated":
        del tensors["b_enc"]
        tensors |= {"r_mag": w["r"], "b_gate": w["g"], "b_mag": w["b"]}
        product = inputs @ w["E"].T
        codes = (product + w["g"] > 0) * relu(inputs @ (w["E"].T * np.exp(w["r"])) + w["b"])
    else:
        config |= {"k": K, "rescale_acts_by_decoder_norm": rescaled}
        pre = relu(pre) if kind == "topk" else pre
        codes = largest(pre, K, np.abs(pre) * (norms if rescaled else 1.0))
    config["rescale_acts_by_decoder_norm"] = rescaled or kind == "batchtopk"
    return published(write(folder, "sae_weights.safetensors", tensors, config | changes), w, codes)


def saelens_old(folder):
    w = weights()
    config = {"hook_point": "blocks.3.hook_resid_pre", "d_in": D, "d_sae": F, "normalize_activations": False}
    config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"], "scaling_factor": np.ones(F, "f4")}
    codes = largest(relu((X - w["d"]) @ w["E"].T + w["b"]), K)
    return published(write(folder, "sae_weights.safetensors", tensors, config), w, codes)


def saelens_scaled(folder):
    w, s = weights(), 1.7
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "normalize_activations": "expected_average_only_in"}
    tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"]}
    codes = relu((s * X - w["d"]) @ w["E"].T + w["b"])
    path = write(folder, "sae_weights.safetensors", tensors, config)
    return published(path, w, codes, scale=s, scaling_factor=s)


def saelens_scaler(folder):
    made = saelens_scaled(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 1.7, "has_whitening": False}))
    return made._replace(options={})


def sparsify(folder, kind, /, **changes):
    w = weights()
    config = {"activation": kind, "k": K, "num_latents": 0, "expansion_factor": 3, "d_in": D, "transcode": False}
    tensors = {"encoder.weight": w["E"], "encoder.bias": w["b"], "W_dec": w["D"], "b_dec": w["d"]}
    pre = relu((X - w["d"]) @ w["E"].T + w["b"])
    if kind == "groupmax":
        groups = pre.reshape(len(X), K, F // K)
        codes = (groups * (np.arange(F // K) == groups.argmax(axis=2)[..., None])).reshape(pre.shape)
    elif changes.get("signed"):
        pre = (X - w["d"]) @ w["E"].T + w["b"]
        codes = largest(pre, K, np.abs(pre))
    else:
        codes = largest(pre, K)
    made = write(folder / "layers.10", "sae.safetensors", tensors, config | changes)
    return published(made, w, codes)


def dictionary_learning(folder, kind, *, backup=False):
    w, scale = weights(), 2.5 if backup else 1.0
    config = {"trainer": {"dict_class": kind, "activation_dim": D, "dict_size": F, "k": K, "lm_name": "m", "layer": 3}}
    linears = {"encoder.weight": w["E"], "encoder.bias": w["b"], "decoder.weight": w["D"].T}
    centered = (X - scale * w["d"]) @ w["E"].T
    pre = centered + scale * w["b"]
    threshold = np.float32(0.5)
    if kind == "AutoEncoder":
        tensors, codes = linears | {"bias": w["d"]}, relu(pre)
    elif kind == "AutoEncoderNew":
        tensors, codes = linears | {"decoder.bias": w["d"]}, relu(X @ w["E"].T + w["b"])
    elif kind == "GatedAutoEncoder":
        tensors = {"encoder.weight": w["E"], "decoder.weight": w["D"].T, "decoder_bias": w["d"]}
        tensors |= {"r_mag": w["r"], "gate_bias": w["g"], "mag_bias": w["b"]}
        codes = (centered + w["g"] > 0) * relu(np.exp(w["r"]) * centered + w["b"])
    elif kind == "JumpReluAutoEncoder":
        pre = X @ w["E"].T + w["b"]
        tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"], "threshold": w["t"]}
        codes = relu(pre * (pre > w["t"]))
    elif kind == "AutoEncoderTopK":
        tensors = linears | {"b_dec": w["d"], "k": np.array(K), "threshold": np.array(threshold)}
        codes = largest(relu(pre), K)
    elif kind == "BatchTopKSAE":
        tensors = linears | {"b_dec": w["d"], "k": np.array(K), "threshold": np.array(threshold)}
        codes = relu(pre) * (pre > scale * threshold)
    else:
        tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"], "k": np.array(K)}
        tensors |= {"threshold": np.array(threshold), "group_sizes": np.array([8, 12])}
        codes = relu(pre) * (pre > threshold)
    if backup:
        tensors = {"step": 7, "norm_factor": scale, "optimizer": {}, "config": {},
                   "ae": {name: torch.from_numpy(each.copy()) for name, each in tensors.items()}}  # fmt: skip
    w["offset"] = scale * w["d"]
    return published(write(folder, "ae.pt", tensors, config, "config.json"), w, codes, bias="offset")


def gemma_scope(folder, version):
    w = weights()
    pre = X @ w["E"].T + w["b"]
    tensors = {"W_enc": w["E"].T, "W_dec": w["D"], "b_enc": w["b"], "b_dec": w["d"], "threshold": w["t"]}
    if version == 1:
        path = write(folder, "layer_20/width_16k/average_l0_71/params.npz", tensors)
    else:
        hook = {"hf_hook_point_in": "model.layers.5.output", "architecture": "jump_relu"}
        tensors = {name.lower(): each for name, each in tensors.items()}
        path = write(folder, "resid_post/layer_5_width_16k_l0_small/params.safetensors", tensors, hook, "config.json")
    return published(path, w, relu(pre) * (pre > w["t"]))


def qwen_scope(folder):
    w = weights()
    w["b"] -= 3.0  # so that some of the largest are below zero
    tensors = {"W_enc": w["E"], "W_dec": w["D"].T, "b_enc": w["b"], "b_dec": w["d"]}
    path = write(folder / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", "layer3.sae.pt", tensors)
    return published(path, w, largest(X @ w["E"].T + w["b"], K))


def llama_scope(folder, version):
    w, norm = weights(), 3.7
    s = np.sqrt(D) / norm
    pre = s * X @ w["E"].T + w["b"]
    linears = {"encoder.weight": w["E"], "encoder.bias": w["b"], "decoder.weight": w["D"].T, "decoder.bias": w["d"]}
    config = {"d_model": D, "hook_point_in": "blocks.3.hook_resid_post", "act_fn": "jumprelu"}
    if version == "2024":
        config |= {"dataset_average_activation_norm": {"in": norm, "out": norm}, "jump_relu_threshold": 0.4}
        path = write(folder, "checkpoints/final.safetensors", linears)
        (folder / "hyperparams.json").write_text(json.dumps(config))
        return published(path, w, relu(pre) * (pre > s * 0.4), scale=s)
    thresholds = np.log(w["t"])
    if version == "R1":
        config |= {"dataset_average_activation_norm": norm}
        path = write(
            folder, "sae_weights.safetensors", linears | {"log_jumprelu_threshold": thresholds}, config, "config.json"
        )
        return published(path, w, relu(pre) * (pre > w["t"]), scale=s)
    tensors = {"W_E": w["E"].T, "W_D": w["D"], "b_E": w["b"], "b_D": w["d"]}
    tensors |= {"activation_function.log_jumprelu_threshold": thresholds}
    tensors |= {"dataset_average_activation_norm.blocks.3.hook_resid_post": np.array(norm, "f4")}
    norms = np.linalg.norm(w["D"], axis=1)
    path = write(folder, "sae_weights.safetensors", tensors, config | {"sae_type": "sae"}, "config.json")
    return published(path, w, relu(pre) * (pre * norms > w["t"]), scale=s)


def openai(folder):
    w = weights()
    tensors = {"pre_bias": w["d"], "encoder.weight": w["E"], "latent_bias": w["b"], "decoder.weight": w["D"].T}
    tensors |= {"stats_last_nonzero": np.zeros(F, dtype=np.int64), "activation": "ReLU", "activation_state_dict": {}}
    path = write(folder, "3.pt", tensors)
    return published(path, w, relu((X - w["d"]) @ w["E"].T + w["b"]))


def goodfire(folder, suffix="_linear"):
    w = weights()
    tensors = {f"encoder{suffix}.weight": w["E"], f"encoder{suffix}.bias": w["b"]}
    tensors |= {f"decoder{suffix}.weight": w["D"].T, f"decoder{suffix}.bias": w["d"]}
    return published(write(folder, "model-l19.pth", tensors), w, relu(X @ w["E"].T + w["b"]))


CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)  # fmt: skip
WRITERS = {
    **{f"saelens {name}": lambda f, name=name: saelens(f, name)
       for name in ("standard", "jumprelu", "gated", "topk", "abstopk", "batchtopk")},
    "saelens uncentered": lambda f: saelens(f, "standard", centered=False),
    "saelens rescaled": lambda f: saelens(f, "topk", rescaled=True),
    "saelens before 6": saelens_old,
    "saelens normalized": saelens_scaled,
    "saelens with a scaler": saelens_scaler,
    "sparsify": lambda f: sparsify(f, "topk"),
    "sparsify groupmax": lambda f: sparsify(f, "groupmax"),
    "sparsify signed": lambda f: sparsify(f, "topk", signed=True),
    **{f"dictionary_learning {kind}": lambda f, kind=kind: dictionary_learning(f, kind) for kind in CLASSES},
    "dictionary_learning backup": lambda f: dictionary_learning(f, "BatchTopKSAE", backup=True),
    "gemma scope": lambda f: gemma_scope(f, 1),
    "gemma scope 2": lambda f: gemma_scope(f, 2),
    "qwen scope": qwen_scope,
    "llama scope": lambda f: llama_scope(f, "2024"),
    "llama scope r1": lambda f: llama_scope(f, "R1"),
    "llamascopium": lambda f: llama_scope(f, "2"),
    "openai": openai,
    "goodfire": goodfire,
    "linear": lambda f: goodfire(f, ""),
}  # fmt: skip
