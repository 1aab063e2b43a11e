"""
Costs
=====

Estimate the floating-point operations, device memory, disk and hours of each step from the teacher's configuration.
Nothing is downloaded, trained or allocated. Tests compare the formulas with counted operations and measured sizes.

The hours are assumed: they take a share of the GPU's peak, by default 30%, that no run at this scale has measured. The
softmax over the vocabulary and Adam wait for memory, and reach less. After each step the job prints its hours.
"""

# %%
# Models and devices
# ------------------
import math
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from geofloor.students import student_config

# Dense peaks in FLOP/s (bf16 with float32 accumulation, TF32, float32 without tensor cores) and memory in GiB, from
# the vendors' data sheets: half of the figures "with sparsity", where the sheets give those.
GPUS = {
    "h200": (989e12, 495e12, 67e12, 141),
    "h100": (989e12, 495e12, 67e12, 80),  # SXM
    "h100-pcie": (756e12, 378e12, 51e12, 80),
    "a100": (312e12, 156e12, 19.5e12, 80),
    "a100-40gb": (312e12, 156e12, 19.5e12, 40),
    "l40s": (362e12, 183e12, 91.6e12, 48),
    "l4": (121e12, 60e12, 30.3e12, 24),
    "a10": (125e12, 62.5e12, 31.2e12, 24),
    "a6000": (154.8e12, 77.4e12, 38.7e12, 48),
    "rtx5090": (209.5e12, 104.8e12, 104.8e12, 32),
    "rtx4090": (165.2e12, 82.6e12, 82.6e12, 24),
    "rtx3090": (71e12, 35.6e12, 35.6e12, 24),
    "mi300x": (1307e12, 654e12, 163e12, 192),
}
USABLE = 0.9  # share of the memory (assumed); the driver, kernels and fragmentation take the rest
TOKENS_PER_SECOND = 5e5  # of a tokenizer on several cores (assumed); the download of the text comes on top
GIB = 2**30
CHUNK_LOGITS = 2**25  # numbers per chunk of geofloor's loss and of its autoencoder's step on a GPU
BOTTLENECK_STEPS = 150  # of the fit at each width
BOTTLENECK_FITTED = 20_480  # positions, the default of BottleneckPredictor
BOTTLENECK_MINIBATCH = 682  # positions per step: a chunk of logits on an accelerator
KEPT_BYTES = 2**32  # the teacher's probabilities are kept for all students if they take no more
# Bytes saved per block for the backward pass, per token and dimension, of GPT-NeoX with fused attention: normalized
# inputs; queries, keys and values before and after rotation; 4d units before and after the activation. Measured.
SAVED_BYTES = {"fp32": 72, "tf32": 72, "bf16": 38}


class Shape(NamedTuple):
    """Sizes of a language model, for its costs."""

    width: int
    n_layers: int
    n_parameters: int
    block: int  # weights in the matrices of one block; each takes one multiplication and one addition per token
    unembedding: int  # weights
    n_vocabulary: int


def shape_of(config):
    """Count the weights of a model, built on the meta device without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2 and id(p) not in embeddings)
    n_layers, n_parameters = config.num_hidden_layers, sum(p.numel() for p in model.parameters())
    return Shape(config.hidden_size, n_layers, n_parameters, matrices // n_layers, head.numel(), head.shape[0])


# %%
# Operations per token
# --------------------
# Each function counts per token, or per position.


def blocks_forward(shape, length, n_layers=None):
    """Count the operations of a forward pass through the blocks, in matrix products alone.

    2 N for N weights, and 4 T d for attention's two products: queries with keys, and attention weights with values.
    Causal kernels may do half of the latter.
    """
    return (shape.n_layers if n_layers is None else n_layers) * (2 * shape.block + 4 * length * shape.width)


def sae_training(width, n_latents):
    """Count the operations of an autoencoder's training step.

    Five products of 2 d F: encoding, decoding, and the gradients of codes and of both weights. Automatic
    differentiation would take a sixth, the gradient of the inputs; geofloor's step sums the codes' gradients over the
    batch first. The biases take of order F operations; Adam and the projection run once per batch.
    """
    return 10 * width * n_latents


def divergence(shape):
    """Count the operations of a model's share of the KL: softmax, logarithm and gradient, ten per vocabulary entry."""
    return 10 * shape.n_vocabulary


def distillation(teacher, students, length, teacher_passes=1):
    """Count the operations of training all students.

    6 N for the blocks and the unembedding of a student (2 N forward, 4 N backward), 3 times the forward pass for
    attention, and 2 N for the teacher. The teacher's logits are computed `teacher_passes` times: once if they are kept
    for all students.
    """
    kl = divergence(teacher)
    total = blocks_forward(teacher, length) + teacher_passes * (2 * teacher.unembedding + kl)
    return total + sum(3 * (blocks_forward(each, length) + 2 * each.unembedding) + kl for each in students)


def evaluation(teacher, students, length):
    """Count the operations of an evaluation: forward passes only."""
    models = (teacher, *students)
    return sum(blocks_forward(each, length) + 2 * each.unembedding + divergence(each) for each in models)


def ablation(teacher, length, n_points, n_latents):
    """Count the operations of an ablation after one layer: codes, and passes of the teacher through all its blocks.

    Removing features from the residual stream takes of order d.
    """
    forward = evaluation(teacher, [], length)
    return 2 * teacher.width * n_latents + (n_points + 2) * forward  # the two: no feature and all features removed


def bottleneck(teacher, width, n_steps, *, kept):
    """Count the operations per position of a minibatch, in all steps, of fitting logits of rank `width`.

    A step computes logits, their change along one direction for the rows, and two gradients. The teacher's logits are
    computed again unless its probabilities are kept. The work before the first step and after the last runs once, and
    is left out.
    """
    products = 8 * teacher.n_vocabulary * width + (0 if kept else 2 * teacher.unembedding)
    return n_steps * (products + 2 * divergence(teacher))


# %%
# Steps
# -----


class Cost(NamedTuple):
    """Cost of one step; sizes are in bytes."""

    flops: float = 0.0
    memory: float = 0.0  # peak on the device
    disk: float = 0.0  # of the results
    checkpoints: float = 0.0  # removed at the end of the step
    seconds: float = 0.0
    remedy: str = ""  # option to save memory


def costs(options, config, plan):
    """Estimate the cost of each step, by its name."""
    teacher = shape_of(config)
    students = {width: shape_of(student_config(config, width)) for width in options.widths}
    n_latents = options.expansion * teacher.width
    n_sae = 2 * n_latents * teacher.width + n_latents + teacher.width
    wide = 2 if options.precision == "bf16" else 4
    # The extractor loads the teacher without its unembedding; a block holds about a dozen numbers per dimension.
    forward = wide * (teacher.n_parameters - teacher.unembedding)
    forward += 12 * wide * options.forward_batch * options.sae_length * teacher.width
    depth = sum(layer % teacher.n_layers + 1 for layer in options.layers)

    def extraction(n_sequences):
        return n_sequences * options.sae_length * blocks_forward(teacher, options.sae_length, depth)

    n_layers = len(options.layers)
    measured = plan.n_statistics * (options.sae_length - options.skip_first)
    ablated = options.ablation_sequences * options.length
    kept = 4 * options.forward_batch * options.length * teacher.n_vocabulary
    by_step = {
        "tokens": Cost(
            disk=plan.n_blocks * options.length * plan.token_bytes,
            seconds=plan.n_blocks * options.length / TOKENS_PER_SECOND,
        ),
        "sae": Cost(
            flops=extraction(plan.n_sae)
            + n_layers * plan.sae_steps * options.sae_batch * sae_training(teacher.width, n_latents),
            # Weights, two sets of gradients and Adam's two moments; codes and their gradients in chunks; the batch.
            memory=forward + 20 * n_sae + 3 * 4 * CHUNK_LOGITS + 2 * 4 * options.sae_batch * teacher.width,
            disk=n_layers * 4 * n_sae,
            checkpoints=3 * 4 * n_sae + 8 * n_latents,  # weights, Adam's moments, tokens since each latent fired
            remedy="a smaller --forward-batch or --expansion",
        ),
        "statistics": Cost(
            flops=extraction(plan.n_statistics)
            + n_layers * measured * 2 * teacher.width * n_latents  # codes alone
            + n_layers * ablated * ablation(teacher, options.length, options.ablation_points, n_latents),
            # The ablation loads the whole teacher as well, and keeps its probabilities if they fit KEPT_BYTES.
            memory=forward + 4 * n_sae + 4 * 4 * CHUNK_LOGITS + wide * teacher.n_parameters + min(kept, KEPT_BYTES),
            disk=n_layers * 4 * 8 * n_latents,  # importance, firing rate, mean, latent
            remedy="a smaller --forward-batch",
        ),
        "bottleneck": _bottleneck(options, teacher, wide),
        "students": _students(options, options.n_steps, teacher, [students[width] for width, _ in plan.students]),
        "longer": _longer(options, teacher, [students[width] for width in options.longer_widths]),
        "calibration": Cost(seconds=60.0),
        "probes": _probes(options, teacher, [students[width] for width in options.probe_widths], wide),
    }
    return {step: _timed(step, cost, options) for step, cost in by_step.items()}


def _bottleneck(options, teacher, wide):
    widths = [*{width for width in options.widths if width < teacher.width}, teacher.width - 1]
    n = min(options.bottleneck_positions, options.eval_sequences * options.length // 2)
    fitted = min(BOTTLENECK_FITTED, options.eval_sequences * options.length - n)
    kept = 4 * fitted * teacher.n_vocabulary <= KEPT_BYTES
    probabilities = 4 * (n + fitted) * teacher.n_vocabulary if kept else 0
    minibatch = min(BOTTLENECK_MINIBATCH, fitted)
    flops = minibatch * sum(bottleneck(teacher, width, BOTTLENECK_STEPS, kept=kept) for width in widths)
    # Rows take up to 20 steps at the end.
    flops += 2 * n * sum(20 * 4 * teacher.n_vocabulary * width for width in widths)
    # The teacher; fitted and tried positions; weights, gradients and Adam's moments; the loss's chunks.
    memory = wide * teacher.n_parameters + 12 * (n + fitted) * teacher.width + probabilities
    memory += 20 * teacher.width * teacher.n_vocabulary + 5 * 4 * CHUNK_LOGITS
    flops += (n + fitted) * evaluation(teacher, [], options.length)
    return Cost(flops=flops, memory=memory, remedy="fewer --bottleneck-positions")


def _longer(options, teacher, students):
    if not students:
        return Cost()
    return _students(options, options.longer_steps, teacher, students)._replace(disk=0)  # their losses alone are kept


def _students(options, n_steps, teacher, students):
    n_parameters = sum(each.n_parameters for each in students)
    moments = 2 * n_parameters  # Adam keeps two; Muon keeps one for the blocks' matrices
    if options.optimizer == "muon":
        moments -= sum(each.n_layers * each.block for each in students)
    n_eval = n_steps // options.eval_every + 1

    def parts(accumulation):
        return -(-options.batch_size // accumulation) * options.length  # positions per micro-batch

    def memory(accumulation):
        kept = 4 * parts(accumulation) * teacher.n_vocabulary
        saved = max(
            (SAVED_BYTES[options.precision] * each.n_layers + 4) * parts(accumulation) * each.width for each in students
        )
        # Weights, gradients and moments of all students stay. One student's backward pass runs at a time, and then
        # the loss's chunks: logits, probabilities and the gradient of the unembedding.
        total = 8 * n_parameters + 4 * moments + 4 * teacher.n_parameters + saved + (kept if kept <= KEPT_BYTES else 0)
        total += 5 * 4 * CHUNK_LOGITS + 2 * 4 * max(each.unembedding for each in students)
        if options.precision == "bf16":  # autocast's copies of the weights
            total += 2 * (teacher.n_parameters + max(each.n_parameters for each in students))
        return total

    available = USABLE * GPUS[options.gpu][-1] * GIB
    fitting = [k for k in (2**i for i in range(12)) if k <= options.batch_size and memory(k) <= available]
    remedy = f"--gradient-accumulation {fitting[0]}" if fitting else "fewer --widths at a time"
    kept = 4 * parts(options.gradient_accumulation) * teacher.n_vocabulary <= KEPT_BYTES
    trained = distillation(teacher, students, options.length, teacher_passes=1 if kept else len(students))
    evaluated = n_eval * evaluation(teacher, students, options.length) + evaluation(teacher, [], options.length)
    return Cost(
        flops=options.length * (n_steps * options.batch_size * trained + options.eval_sequences * evaluated),
        memory=memory(options.gradient_accumulation),
        disk=4 * n_parameters,
        checkpoints=4 * (n_parameters + moments),
        remedy=remedy,
    )


def _probes(options, teacher, students, wide):
    n_texts = 2 * options.n_per_class * len(options.concepts)
    n_layers = options.probe_layer % teacher.n_layers + 1
    forward = sum(blocks_forward(each, options.length, n_layers) for each in (teacher, *students))
    return Cost(
        flops=n_texts * options.length * forward,  # at most: texts are shorter, or cut to this length
        memory=wide * teacher.n_parameters + 12 * wide * options.forward_batch * options.length * teacher.width,
        disk=n_texts * (options.max_characters + 16),  # label, row and punctuation
        remedy="a smaller --forward-batch",
    )


def _timed(step, cost, options):
    bf16, tf32, fp32, _ = GPUS[options.gpu]
    peak = {"bf16": bf16, "tf32": tf32, "fp32": fp32}[options.precision]
    if step in ("sae", "statistics", "bottleneck") and options.precision == "bf16":
        peak = tf32  # autoencoders and low-rank logits are float32 in any case
    return cost._replace(seconds=cost.seconds + cost.flops / (peak * options.utilization))


# %%
# The table
# ---------


def table(by_step, options):
    """Format the costs, with a remedy for each step too large for the GPU."""
    available = GPUS[options.gpu][-1]
    lines = [f"{'step':12}{'FLOPs':>10}{'memory':>12}{'disk':>12}{'checkpoints':>13}{'hours':>8}"]
    for step, cost in by_step.items():
        lines.append(
            f"{step:12}{cost.flops:10.2g}{_bytes(cost.memory):>12}{_bytes(cost.disk):>12}"
            f"{_bytes(cost.checkpoints):>13}{cost.seconds / 3600:8.2f}"
        )
    every = list(by_step.values())
    flops, disk, seconds = (math.fsum(getattr(cost, name) for cost in every) for name in ("flops", "disk", "seconds"))
    peak, checkpoints = (max(getattr(cost, name) for cost in every) for name in ("memory", "checkpoints"))
    lines.append(
        f"{'in all':12}{flops:10.2g}{_bytes(peak):>12}{_bytes(disk):>12}{_bytes(checkpoints):>13}{seconds / 3600:8.2f}"
    )
    lines += [
        "FLOPs, memory and disk: by formulas that tests compare with small runs. Memory and checkpoints: the largest",
        f"at any time. Hours: assumed, on one {options.gpu} at {options.utilization:.0%} of its peak in "
        f"{options.precision} ({_peak(options):.0f} TFLOP/s of its data sheet),",
        "without downloads. No run at this scale has measured that share; set --utilization to what yours reaches.",
    ]
    lines += [
        f"The step {step!r} needs {_bytes(cost.memory)} and does not fit one {options.gpu} (usable: {USABLE:.0%} "
        f"of {available} GiB): try {cost.remedy}."
        for step, cost in by_step.items()
        if cost.memory > USABLE * available * GIB
    ]
    return "\n".join(lines)


def _peak(options):
    return dict(zip(("bf16", "tf32", "fp32"), GPUS[options.gpu], strict=False))[options.precision] / 1e12


def _bytes(n):
    return f"{n / GIB:.1f} GiB" if n >= GIB else f"{n / 2**20:.1f} MiB" if n else "-"
