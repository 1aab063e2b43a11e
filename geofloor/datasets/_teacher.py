"""The teacher that comes with the library."""

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

    A GPT-NeoX model, as Pythia is, trained by ``python -m geofloor.datasets.train_teacher`` on the
    source and docstrings that `load_local_corpus` reads, so that the whole method can be tried on a real
    language model with nothing downloaded.

    Returns
    -------
    teacher : :class:`~sklearn.utils.Bunch`
        With the fields

        - ``model`` : GPTNeoXForCausalLM in evaluation mode, float32, on the CPU;
        - ``tokenizer`` : PreTrainedTokenizerFast, byte-level BPE;
        - ``path`` : Path of its folder, which `ActivationExtractor` takes as well;
        - ``training`` : dict of what `train_teacher` reported: settings, tokens, the held-out loss and
          that of token frequencies alone, in nats per token, and the history.

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
