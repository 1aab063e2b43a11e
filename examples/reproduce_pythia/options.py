"""
Options and plan
================

The defaults are the paper's (Sections 5 to 7, Appendices C to E). The paper leaves some choices open:

- The first layer's number. Here it is 0, so layer 12 is ``hidden_states[13]`` in ``transformers``. If the paper means
  ``hidden_states[12]``, use ``--layers 7 11 15 --probe-layer 11``.
- The tokens to measure features on. Here they are 10M.
- The first position of each sequence, an attention sink. Here it is left out; ``--skip-first 0`` keeps it.
- The text to evaluate on. Here it is the start of the dataset.
- The precision. Here it is TF32.
- The rules by which a text has a concept, and the length of a text. Here they are those of `pile_concepts`, and texts
  are cut to 1,500 characters.
- How training was extended to 40,000 steps. Here a new student of that width takes as many, with its own decay.

The text differs: the default is ``monology/pile-uncopyrighted``. By its own description this is The Pile without
Books3, BookCorpus2, OpenSubtitles, YTSubtitles and OWT2.
"""

# %%
# Options
# -------
import argparse
from pathlib import Path
from typing import NamedTuple

import costs
from transformers import AutoConfig, GPTNeoXConfig

from geofloor import DistilledStudent

PYTHIA_410M = "EleutherAI/pythia-410m"
PAPER = DistilledStudent.paper(PYTHIA_410M, 1024)  # for its settings
CONCEPTS = ["question", "french", "code", "sports", "legal", "medical"]


def parse_arguments(arguments, steps):
    """Read the command line; ``--steps`` chooses among `steps`."""
    parser = argparse.ArgumentParser(
        prog="python examples/reproduce_pythia",
        description="Reproduce the paper's experiments on a language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=PYTHIA_410M, help="name or folder of the teacher")
    add("--dataset", default="monology/pile-uncopyrighted", help="name, folder or .jsonl or .parquet file, streamed")
    add("--split", default="train", help="of the dataset")
    add("--text-column", default="text", help="the probes need 'text' and 'meta' with 'pile_set_name'")
    add("--output", type=Path, default=Path("pythia-410m"), help="folder of the results")
    add("--steps", nargs="+", choices=list(steps), default=list(steps), help="steps to run")
    add("--seed", type=int, default=0, help="of autoencoders, bottleneck, students and probes")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--precision", choices=("fp32", "tf32", "bf16"), default="tf32", help="of matrix products on a GPU")
    add("--forward-batch", type=int, default=32, help="sequences per forward pass of the teacher")

    add("--layers", type=int, nargs="+", default=[8, 12, 16], help="blocks to measure after; the first is 0")
    add("--expansion", type=int, default=32, help="latents per dimension of the teacher")
    add("--l1-coefficient", type=float, default=8e-4, help="of the autoencoders")
    add("--sae-learning-rate", type=float, default=3e-4, help="of the autoencoders")
    add("--sae-tokens", type=int, default=300_000_000, help="tokens to train each autoencoder on")
    add("--sae-length", type=int, default=1024, help="tokens per sequence; a multiple of --length")
    add("--sae-batch", type=int, default=32 * 1024, help="tokens per step")
    add("--sae-checkpoint-every", type=int, default=500, help="steps")
    add("--skip-first", type=int, default=1, help="positions to leave out at the start of each sequence")
    add("--statistics-tokens", type=int, default=10_000_000, help="held-out tokens to measure the features on")
    add("--ablation-sequences", type=int, default=128, help="held-out blocks to measure the teacher's loss on")
    add(
        "--ablation-points",
        type=int,
        default=24,
        help="numbers of features to ablate; floors between them are interpolated",
    )
    add("--bottleneck-positions", type=int, default=16_384, help="held-out positions to fit low-rank logits to")

    add("--widths", type=int, nargs="+", default=[128, 256, 512, 768, 1024], help="of the students")
    add("--repeat-widths", type=int, nargs="*", default=[128], help="widths to train with a second seed as well")
    add("--length", type=int, default=512, help="tokens per block, the sequences of the students")
    add("--batch-size", type=int, default=PAPER.batch_size, help="blocks per step")
    add("--n-steps", type=int, default=PAPER.n_steps, help="of the students")
    add("--longer-widths", type=int, nargs="*", default=[128], help="widths to train for --longer-steps as well")
    add("--longer-steps", type=int, default=40_000, help="of the students that are trained longer")
    add("--learning-rate", type=float, default=PAPER.learning_rate, help="of the students")
    add("--optimizer", choices=("adamw", "muon"), default=PAPER.optimizer, help="of the students")
    add("--weight-decay", type=float, default=PAPER.weight_decay, help="of the students")
    add("--warmup-steps", type=int, default=PAPER.warmup_steps, help="of the students")
    add("--temperature", type=float, default=PAPER.temperature, help="T of the KL")
    add("--eval-every", type=int, default=PAPER.eval_every, help="steps")
    add("--eval-sequences", type=int, default=256, help="held-out blocks")
    add("--checkpoint-every", type=int, default=500, help="steps")
    add("--gradient-accumulation", type=int, default=1, help="micro-batches per batch; more need less memory")

    add("--probe-layer", type=int, default=12, help="block to probe after; the first is 0")
    add("--probe-widths", type=int, nargs="*", default=[128, 768, 1024], help="students to probe")
    add("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS, help="to probe for")
    add("--n-per-class", type=int, default=2000, help="texts with and without each concept")
    add("--max-characters", type=int, default=1500, help="of a text to probe")
    add("--probe-rows", type=int, help="rows of the dataset to search for concepts, at most; by default all")

    add("--dry-run", action="store_true", help="print the costs of the steps, and stop")
    add("--gpu", choices=list(costs.GPUS), default="h100", help="for the costs")
    add("--utilization", type=float, default=0.3, help="share of the GPU's peak reached, for the costs")
    return parser.parse_args(arguments)


def teacher_config(model):
    """Return the teacher's configuration; the paper's teacher needs no connection."""
    if model != PYTHIA_410M:
        return AutoConfig.from_pretrained(model)
    return GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=2048,
        rotary_pct=0.25,
    )


def dtype_of(precision):
    """Return the teacher's data type."""
    return "bfloat16" if precision == "bf16" else "float32"


# %%
# Tokens and students
# -------------------


def n_sequences_of(n_tokens, length, skip_first):
    """Count the sequences of `length` needed for `n_tokens` activations."""
    return -(-n_tokens // (length - skip_first))


def students_of(widths, repeat_widths, seed):
    """List the width and the seed of each student."""
    first = [(width, seed) for width in sorted(set(widths))]
    return first + [(width, seed + 1) for width in sorted(set(repeat_widths))]


class Plan(NamedTuple):
    """Numbers of sequences and blocks, for the costs.

    The blocks to evaluate on come first, then those of the autoencoders, then those of the statistics. Students train
    on all but the first.
    """

    n_sae: int  # sequences of the autoencoder's length
    n_statistics: int  # sequences of the autoencoder's length
    n_blocks: int  # blocks of the students' length, in all
    sae_steps: int
    students: list  # (width, seed)
    token_bytes: int


def make_plan(options, config):
    """Lay out the tokens; refuse options that don't fit each other or the teacher."""
    positions = getattr(config, "max_position_embeddings", None) or options.sae_length
    wrong = {
        "--sae-length": options.sae_length % options.length or max(options.sae_length, options.length) > positions,
        "--layers": not all(0 <= layer < config.num_hidden_layers for layer in options.layers),
        "--probe-layer": not 0 <= options.probe_layer < config.num_hidden_layers,
        "--widths": len(set(options.widths)) < 4,
        "--repeat-widths": not set(options.repeat_widths) <= set(options.widths),
        "--probe-widths": not set(options.probe_widths) <= set(options.widths),
        "--longer-widths": not set(options.longer_widths) <= set(options.widths),
        "--longer-steps": bool(options.longer_widths) and options.longer_steps <= options.n_steps,
        "--warmup-steps": options.warmup_steps >= options.n_steps,
        "--skip-first": not 0 <= options.skip_first < min(options.sae_length, options.length),
        "--ablation-sequences": options.ablation_sequences < 1,
        "--bottleneck-positions": options.bottleneck_positions < 2,
    }
    if any(wrong.values()):
        raise SystemExit(
            f"{', '.join(name for name in wrong if wrong[name])}: out of range. --sae-length is a multiple of --length "
            f"and at most the teacher's {positions} positions; its blocks are 0 to {config.num_hidden_layers - 1}; at "
            "least four --widths differ, and other widths are some of them; --warmup-steps is below --n-steps, and "
            "--longer-steps above; the ablation takes a sequence or more, the bottleneck two positions."
        )
    n_sae, n_statistics = (
        n_sequences_of(n, options.sae_length, options.skip_first)
        for n in (options.sae_tokens, options.statistics_tokens)
    )
    measured = (n_sae + n_statistics) * (options.sae_length // options.length)
    n_steps = max(options.n_steps, options.longer_steps if options.longer_widths else 0)
    return Plan(
        n_sae,
        n_statistics,
        options.eval_sequences + max(measured, n_steps * options.batch_size),
        max(n_sae * (options.sae_length - options.skip_first) // options.sae_batch, 1),
        students_of(options.widths, options.repeat_widths, options.seed),
        2 if config.vocab_size <= 2**16 else 4,
    )
