"""Tiny random language models of many families, with random gains and biases."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

N_VOCABULARY, WIDTH, LENGTH = 96, 32, 12
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
COMMON = {
    "vocab_size": N_VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # smaller weights give flat distributions
    **SPECIAL,
}
# A normalization's epsilon has another effect in fewer dimensions, so make it negligible.
LLAMA = {**COMMON, "num_key_value_heads": 2, "rms_norm_eps": 1e-12}
WINDOW = {"sliding_window": 4}
GEMMA = {**LLAMA, "head_dim": 16, "query_pre_attn_scalar": 24}

# With a principal start
PRINCIPAL = {
    "gpt_neox": GPTNeoXConfig(**COMMON, layer_norm_eps=1e-12),
    "gpt2": GPT2Config(
        vocab_size=N_VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.3,
        layer_norm_epsilon=1e-12,
        **SPECIAL,
    ),
    "opt": OPTConfig(
        **{**COMMON, "ffn_dim": 64, "word_embed_proj_dim": WIDTH, "init_std": 0.3, "pad_token_id": 1},
    ),
    "llama": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**LLAMA, **WINDOW),
    "qwen2": Qwen2Config(**LLAMA, **WINDOW, use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**LLAMA, head_dim=16, attention_bias=True),
    "smollm3": SmolLM3Config(**LLAMA, no_rope_layers=[1, 0], attention_bias=True, tie_word_embeddings=True),
    "phi3": Phi3Config(**LLAMA, **WINDOW, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
    "gemma": GemmaConfig(**LLAMA, head_dim=16),
    "gemma2": Gemma2Config(
        **GEMMA, **WINDOW, final_logit_softcapping=8.0, attn_logit_softcapping=4.0, attention_bias=True
    ),
    "gemma3_text": Gemma3TextConfig(**GEMMA, **WINDOW, layer_types=["sliding_attention", "full_attention"]),
    "olmo2": Olmo2Config(**LLAMA),
}
# At random only
RANDOM = {
    "bloom": BloomConfig(vocab_size=N_VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=4, **SPECIAL),
    "falcon": FalconConfig(
        vocab_size=N_VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, **SPECIAL
    ),
    "gptj": GPTJConfig(
        vocab_size=N_VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, rotary_dim=8, n_positions=64, **SPECIAL
    ),
    "cohere": CohereConfig(**{**COMMON, "num_key_value_heads": 2, "logit_scale": 0.5}),
    "granite": GraniteConfig(**LLAMA, logits_scaling=0.5),
    "gpt_neo": GPTNeoConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
        **SPECIAL,
    ),
    "phi": PhiConfig(**COMMON),
    "starcoder2": Starcoder2Config(**COMMON, num_key_value_heads=2),
    "stablelm": StableLmConfig(**{**COMMON, "num_key_value_heads": 2}),
}
# Refused
REFUSED = {
    "bert": BertConfig(**COMMON),
    "mixtral": MixtralConfig(**LLAMA, num_local_experts=4, head_dim=8),
    "mamba": MambaConfig(vocab_size=N_VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, state_size=4, **SPECIAL),
}


def family_model(config, seed=0):
    """Make a language model with random gains and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Gemma adds 1 to its gains.
                mean = float("weight" in name and not config.model_type.startswith("gemma"))
                torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    return model.requires_grad_(False)
