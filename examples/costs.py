"""
What a reproduction costs
=========================

Floating-point operations, device memory, disk and hours of each step of :ref:`reproduce_pythia_410m.py
<sphx_glr_auto_examples_reproduce_pythia_410m.py>`, from the configuration of the teacher alone: nothing is
downloaded, trained or allocated. The formulas stand beside what they count.
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
# the vendors' data sheets; where these give figures "with sparsity", half of them.
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
USABLE = 0.9  # share of the memory: the rest goes to the driver, to kernels and to what is lost between tensors
TOKENS_PER_SECOND = 5e5  # that a tokenizer makes on some cores; the download of the text comes on top
GIB = 2**30
CHUNK_LOGITS = 2**25  # numbers that geofloor's chunked loss and its autoencoder's step hold at a time on a GPU
BOTTLENECK_STEPS = 150  # of the fit at each width, for the job and for its cost
KEPT_BYTES = 2**32  # up to which the teacher's probabilities are kept for all students of a step
# Bytes that a block keeps for the backward pass, per token and dimension, of GPT-NeoX with fused attention: normalised
# inputs, queries, keys and values before and after rotation, 4d units before and after the activation. Measured.
SAVED_BYTES = {"fp32": 72, "tf32": 72, "bf16": 38}


class Shape(NamedTuple):
    """What the costs of a language model depend on."""

    width: int
    n_layers: int
    n_parameters: int
    block: int  # weights of the matrices of one block: each is one multiplication and one addition a token
    unembedding: int  # weights
    n_vocabulary: int


def shape_of(config):
    """Counted on the model itself, built without memory."""
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


def blocks_forward(shape, length, n_layers=None):
    """2 N for N weights, and 4 T d for attention's products of queries with keys and of weights with values.

    Causal kernels may do half of the latter; no other operation counts beside products of matrices.
    """
    return (shape.n_layers if n_layers is None else n_layers) * (2 * shape.block + 4 * length * shape.width)


def sae_training(width, n_latents):
    """Five products of 2 d F: encode, decode, and gradients on codes and on both weights.

    Automatic differentiation would take a sixth, the gradient on the inputs; geofloor's step sums the codes' gradients
    over the batch first. The encoder's and the decoder's bias, Adam and the projection are of order F or once a batch.
    """
    return 10 * width * n_latents


def divergence(shape):
    """What a model adds to the KL: softmax, logarithm and gradient, ten operations for each word, not of matrices."""
    return 10 * shape.n_vocabulary


def distillation(teacher, students, length, teacher_passes=1):
    """Of one training token of all students.

    6 N for the blocks and the unembedding of a student (2 N forward, 4 N backward), attention likewise 3 times, 2 N for
    the teacher. `teacher_passes` is how often the teacher's logits are made from its hidden states: once if they are
    kept for all students.
    """
    kl = divergence(teacher)
    total = blocks_forward(teacher, length) + teacher_passes * (2 * teacher.unembedding + kl)
    return total + sum(3 * (blocks_forward(each, length) + 2 * each.unembedding) + kl for each in students)


def evaluation(teacher, students, length):
    """Of one held-out token: forward passes only."""
    models = (teacher, *students)
    return sum(blocks_forward(each, length) + 2 * each.unembedding + divergence(each) for each in models)


# %%
def ablation(teacher, length, n_points, n_latents):
    """Of one held-out token and one layer: codes, and forward passes of the teacher, whole and at each point.

    Each pass goes through all blocks; what is taken out of the residual stream is of order d.
    """
    forward = evaluation(teacher, [], length)
    return 2 * teacher.width * n_latents + (n_points + 2) * forward  # nothing taken out, and everything, beside points


def bottleneck(teacher, width, n_steps, *, kept):
    """Of one position that logits of a rank are fitted to, and one that they are tried on.

    Logits and gradients, of which the unembedding's is needed where it is fitted; the teacher's logits if its
    probabilities are not kept. What stands at the start and at the end is done once, not at every step.
    """
    products = 10 * teacher.n_vocabulary * width + (0 if kept else 4 * teacher.unembedding)
    return n_steps * (products + 2 * divergence(teacher))


# %%
# Steps
# -----


class Cost(NamedTuple):
    """Of one step; bytes."""

    flops: float = 0.0
    memory: float = 0.0  # at its peak, on the device
    disk: float = 0.0  # results, which stay
    checkpoints: float = 0.0  # removed when the step is done
    seconds: float = 0.0
    remedy: str = ""  # what takes less memory


def costs(options, config, plan):
    """Cost of each step by name; `plan` says how many blocks of tokens go where."""
    teacher = shape_of(config)
    students = {width: shape_of(student_config(config, width)) for width in options.widths}
    n_latents = options.expansion * teacher.width
    n_sae = 2 * n_latents * teacher.width + n_latents + teacher.width
    wide = 2 if options.precision == "bf16" else 4
    # The extractor loads the teacher without its unembedding; of one block a dozen numbers for each dimension live.
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
            # Weights, two sets of gradients and Adam's moments; codes and their gradients in pieces; the batch.
            memory=forward + 20 * n_sae + 3 * 4 * CHUNK_LOGITS + 2 * 4 * options.sae_batch * teacher.width,
            disk=n_layers * 4 * n_sae,
            checkpoints=3 * 4 * n_sae + 8 * n_latents,  # weights, Adam's moments, tokens since each latent fired
            remedy="a smaller --forward-batch or --expansion",
        ),
        "statistics": Cost(
            flops=extraction(plan.n_statistics)
            + n_layers * measured * 2 * teacher.width * n_latents  # codes alone
            + n_layers * ablated * ablation(teacher, options.length, options.ablation_points, n_latents),
            # The ablation loads the teacher once more, whole, and keeps its probabilities if these are not too many.
            memory=forward + 4 * n_sae + 4 * 4 * CHUNK_LOGITS + wide * teacher.n_parameters + min(kept, KEPT_BYTES),
            disk=n_layers * 4 * 8 * n_latents,  # importance, firing rate, mean, latent
            remedy="a smaller --forward-batch",
        ),
        "bottleneck": _bottleneck(options, teacher, wide),
        "students": _students(options, teacher, [students[width] for width, _ in plan.students]),
        "calibration": Cost(seconds=60.0),
        "probes": _probes(options, teacher, [students[width] for width in options.probe_widths], wide),
    }
    return {step: _timed(step, cost, options) for step, cost in by_step.items()}


def _bottleneck(options, teacher, wide):
    widths = [*{width for width in options.widths if width < teacher.width}, teacher.width - 1]
    n = min(options.bottleneck_positions, options.eval_sequences * options.length // 2)
    probabilities = 4 * n * teacher.n_vocabulary
    kept = probabilities <= KEPT_BYTES
    flops = n * sum(bottleneck(teacher, width, BOTTLENECK_STEPS, kept=kept) for width in widths)
    # The teacher; positions fitted and tried; weights, gradients and Adam's moments; the loss's chunks.
    memory = wide * teacher.n_parameters + 8 * n * teacher.width + (2 * probabilities if kept else 0)
    memory += 16 * teacher.width * (teacher.n_vocabulary + n) + 5 * 4 * CHUNK_LOGITS
    flops += 2 * n * evaluation(teacher, [], options.length)
    return Cost(flops=flops, memory=memory, remedy="fewer --bottleneck-positions")


def _students(options, teacher, students):
    n_parameters = sum(each.n_parameters for each in students)
    moments = 2 * n_parameters  # Adam's; of the blocks' matrices Muon keeps one
    if options.optimizer == "muon":
        moments -= sum(each.n_layers * each.block for each in students)
    n_eval = options.n_steps // options.eval_every + 1

    def parts(accumulation):
        return -(-options.batch_size // accumulation) * options.length  # positions that are worked on at once

    def memory(accumulation):
        kept = 4 * parts(accumulation) * teacher.n_vocabulary
        saved = max(
            (SAVED_BYTES[options.precision] * each.n_layers + 4) * parts(accumulation) * each.width for each in students
        )
        # Weights, gradients and moments of all students stay; one student's backward pass runs at a time, and then the
        # loss's chunks: logits, probabilities and the gradient on the unembedding.
        total = 8 * n_parameters + 4 * moments + 4 * teacher.n_parameters + saved + (kept if kept <= KEPT_BYTES else 0)
        total += 5 * 4 * CHUNK_LOGITS + 2 * 4 * max(each.unembedding for each in students)
        if options.precision == "bf16":  # copies of the weights, while autocast is on
            total += 2 * (teacher.n_parameters + max(each.n_parameters for each in students))
        return total

    available = USABLE * GPUS[options.gpu][-1] * GIB
    fitting = [k for k in (2**i for i in range(12)) if k <= options.batch_size and memory(k) <= available]
    remedy = f"--gradient-accumulation {fitting[0]}" if fitting else "fewer --widths at a time"
    kept = 4 * parts(options.gradient_accumulation) * teacher.n_vocabulary <= KEPT_BYTES
    trained = distillation(teacher, students, options.length, teacher_passes=1 if kept else len(students))
    evaluated = n_eval * evaluation(teacher, students, options.length) + evaluation(teacher, [], options.length)
    return Cost(
        flops=options.length * (options.n_steps * options.batch_size * trained + options.eval_sequences * evaluated),
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
        flops=n_texts * options.length * forward,  # texts are shorter than this, or cut to it
        memory=wide * teacher.n_parameters + 12 * wide * options.forward_batch * options.length * teacher.width,
        disk=n_texts * (options.max_characters + 16),  # label, row and punctuation
        remedy="a smaller --forward-batch",
    )


def _timed(step, cost, options):
    bf16, tf32, fp32, _ = GPUS[options.gpu]
    peak = {"bf16": bf16, "tf32": tf32, "fp32": fp32}[options.precision]
    if step in ("sae", "statistics", "bottleneck") and options.precision == "bf16":
        peak = tf32  # autoencoders, and logits of low rank, are float32 in any case
    return cost._replace(seconds=cost.seconds + cost.flops / (peak * options.utilisation))


# %%
# The table
# ---------


def table(by_step, options):
    """The costs as text, with what to change where a step does not fit."""
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
        f"Memory and checkpoints: the largest at any time. Hours: on one {options.gpu} at {options.utilisation:.0%} of "
        f"its peak in {options.precision}",
        f"({_peak(options):.0f} TFLOP/s of its data sheet), without downloads.",
    ]
    lines += [
        f"The step {step!r} needs {_bytes(cost.memory)} and does not fit in the {available} GiB of one {options.gpu}, "
        f"of which {USABLE:.0%} can be used: try {cost.remedy}."
        for step, cost in by_step.items()
        if cost.memory > USABLE * available * GIB
    ]
    return "\n".join(lines)


def _peak(options):
    return dict(zip(("bf16", "tf32", "fp32"), GPUS[options.gpu], strict=False))[options.precision] / 1e12


def _bytes(n):
    return f"{n / GIB:.1f} GiB" if n >= GIB else f"{n / 2**20:.1f} MiB" if n else "-"
