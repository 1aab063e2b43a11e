"""The embedded teacher, a small language model shipped with the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sklearn.utils import Bunch

if TYPE_CHECKING:
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

TEACHER_PATH = Path(__file__).with_name("teacher")


def load_teacher() -> Bunch:
    """Load the embedded teacher, a small causal language model of Python source.

    A GPT-NeoX model, like Pythia, to try the whole method on a real language model without downloads.
    ``python -m geofloor.datasets.train_teacher`` trained it on the source and docstrings from
    `load_local_corpus`.

    Returns
    -------
    teacher : :class:`~sklearn.utils.Bunch`
        With the fields

        - ``model`` : GPTNeoXForCausalLM in evaluation mode, float32, on the CPU;
        - ``tokenizer`` : PreTrainedTokenizerFast, byte-level BPE;
        - ``path`` : Path of its folder, also accepted by `ActivationExtractor`;
        - ``training`` : dict, the report of `train_teacher`: settings, numbers of tokens, held-out losses in
          nats per token of the teacher and of token frequencies alone, and the history.

    Examples
    --------
    >>> from geofloor.datasets import load_teacher
    >>> teacher = load_teacher()
    >>> teacher.model.config.model_type, teacher.model.config.hidden_size
    ('gpt_neox', 128)
    >>> teacher.training["held_out_loss_nats"] < 0.6 * teacher.training["unigram_loss_nats"]
    True
    """
    from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

    from geofloor.language_models._loading import building

    with building():
        model: GPTNeoXForCausalLM = GPTNeoXForCausalLM.from_pretrained(TEACHER_PATH, dtype="float32").eval()
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(TEACHER_PATH)
    training: dict[str, Any] = json.loads((TEACHER_PATH / "training.json").read_text(encoding="utf-8"))
    return Bunch(model=model, tokenizer=tokenizer, path=TEACHER_PATH, training=training)
