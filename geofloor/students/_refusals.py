"""Refusals of teachers that have no students, by their configurations."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_OFF = ("is_moe", "enable_moe_block")  # false in dense variants of families with experts
_STATES = (
    "state_size",
    "mamba_d_state",
    "lru_width",
    "linear_conv_kernel_dim",
    "conv_L_cache",
    "attention_hidden_size",  # RWKV
    "chunkwise_kernel",  # xLSTM
)


def why_no_student(config: Any) -> str:
    """Give the reason why there are no students of a model, or an empty string.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of the model.

    Returns
    -------
    reason : str
        End of a sentence about the model.

    Examples
    --------
    >>> from transformers import MixtralConfig, Qwen2Config
    >>> from geofloor.students._refusals import why_no_student
    >>> why_no_student(MixtralConfig(num_local_experts=8))
    'is a mixture of experts (num_local_experts=8)'
    >>> why_no_student(Qwen2Config())
    ''
    """
    given = config.to_dict()
    if config.is_encoder_decoder:
        return "has an encoder and a decoder"
    if config.get_text_config(decoder=True) is not config:
        return "holds a language model beside other parts, and students need the language model alone"
    experts = {**(given.get("ffn_config") or {}), **given}
    for name in _EXPERTS:
        n = experts.get(name)
        if isinstance(n, int) and n > 1 and all(given.get(each, True) for each in _OFF):
            return f"is a mixture of experts ({name}={n})"
    for name in _STATES:
        if given.get(name) is not None:
            return f"is a state-space, recurrent or convolutional model, or a hybrid of such ({name}={given[name]})"
    if _is_encoder(config, given):
        return "is an encoder, without next-token distributions to distill"
    missing = [name for name in ("vocab_size", "hidden_size", "num_attention_heads") if not _whole(config, name)]
    return f"has no {' or '.join(missing)} in its configuration" if missing else ""


def check_has_students(config: Any) -> None:
    """Refuse models that have no students.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of the model.

    Raises
    ------
    ValueError
        If it is a mixture of experts, a state-space model or an encoder, or lacks the usual fields.
    """
    if reason := why_no_student(config):
        kind = type(config).__name__
        raise ValueError(
            f"The teacher is of type {config.model_type or kind!r}, for which there is no rule: it {reason}. "
            f"Give a dense decoder, or register a function for {kind} with geofloor.students.student_config.register."
        )


def _is_encoder(config: Any, given: dict[str, Any]) -> bool:
    if given.get("use_bidirectional_attention"):
        return True
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    # Encoders of the BERT family have a causal variant, with is_decoder=True.
    return masked and not (causal and (given.get("is_decoder") or given.get("causal")))


def _whole(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), int)
