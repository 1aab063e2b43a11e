import numpy as np
import pytest
from small_models import BLOCKS, N_LAYERS, N_VOCABULARY, SIZES, WIDTH, bert, gpt2, gpt_neox, llama, new_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    MptConfig,
    MptForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from geofloor import ActivationExtractor
from geofloor.language_models import parse_hook

SMALL = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}


def gemma2():
    return new_model(Gemma2ForCausalLM, Gemma2Config(**SMALL, initializer_range=0.2))


def olmo2():
    return new_model(Olmo2ForCausalLM, Olmo2Config(**{**SMALL, "num_key_value_heads": 2}))


def glm4():
    return new_model(Glm4ForCausalLM, Glm4Config(**SMALL))


def opt():
    sizes = {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}
    return new_model(OPTForCausalLM, OPTConfig(**sizes))


def bloom():
    config = BloomConfig(vocab_size=N_VOCABULARY, hidden_size=WIDTH, n_layer=N_LAYERS, n_head=2)
    return new_model(BloomForCausalLM, config)


def mpt():
    config = MptConfig(vocab_size=N_VOCABULARY, d_model=WIDTH, n_layers=N_LAYERS, n_heads=2, max_seq_len=64)
    return new_model(MptForCausalLM, config)


def distilbert():
    config = DistilBertConfig(vocab_size=N_VOCABULARY, dim=WIDTH, n_layers=N_LAYERS, n_heads=2, hidden_dim=32)
    return new_model(DistilBertModel, config)


@pytest.mark.parametrize("new", [gpt_neox, gpt2, llama, gemma2, olmo2, glm4])
def test_mlp_and_attention_are_what_is_added_to_the_residual_stream(new):
    model = new()
    before, after = (ActivationExtractor(model, layer).transform(BLOCKS) for layer in (1, 2))
    mlp, attention = (ActivationExtractor(model, 2, output=name).transform(BLOCKS) for name in ("mlp", "attention"))
    assert min(np.abs(mlp).max(), np.abs(attention).max()) > 1e-4 * np.abs(after).max()
    np.testing.assert_allclose(before + mlp + attention, after, atol=1e-5 * np.abs(after).max())


def test_several_blocks_in_one_pass_have_the_bits_of_each_alone():
    model = gpt_neox()
    both = ActivationExtractor(model, [2, 0], output="mlp").fit()
    assert both.module_name_ == ["layers.2.mlp", "layers.0.mlp"]
    assert both.block_name_ == ["layers.2", "layers.0"]
    for layer, rows in both.transform(BLOCKS).items():
        np.testing.assert_array_equal(rows, ActivationExtractor(model, layer, output="mlp").transform(BLOCKS))


@pytest.mark.parametrize(
    ("new", "output", "name"),
    [
        (gpt2, "mlp", "h.1.mlp"),
        (gpt2, "attention", "h.1.attn"),
        (llama, "attention", "layers.1.self_attn"),
        (gpt_neox, "attention", "layers.1.attention"),
        (gemma2, "mlp", "layers.1.post_feedforward_layernorm"),
        (gemma2, "attention", "layers.1.post_attention_layernorm"),
        (glm4, "attention", "layers.1.post_self_attn_layernorm"),
        (opt, "attention", "layers.1.self_attn"),
        (distilbert, "mlp", "transformer.layer.1.ffn"),
    ],
)
def test_modules_have_the_names_of_their_family(new, output, name):
    extractor = ActivationExtractor(new(), 1, output=output).fit()
    assert extractor.module_name_.endswith(name)
    assert extractor.transform(BLOCKS).shape == (100, WIDTH)


@pytest.mark.parametrize(
    ("new", "output", "message"),
    [
        (opt, "mlp", r"output='mlp' can't be found: .*layers.1' of model type 'opt' holds the modules .*'fc1', 'fc2'"),
        (bert, "mlp", r"holds the modules \['attention', 'intermediate', 'output'\]"),
        (bert, "attention", "layer.1.attention' of model type 'bert' gives the sum"),
        (bloom, "mlp", "'h.1.mlp' of model type 'bloom' gives the sum"),
        (mpt, "mlp", "'blocks.1.ffn' of model type 'mpt' gives the sum"),
        (gpt2, "heads", "output='heads' is unknown; use one of 'residual', 'mlp', 'attention'"),
        (gpt2, None, "output=None is unknown"),
    ],
)
def test_outputs_that_can_not_be_read_are_refused(new, output, message):
    with pytest.raises(ValueError, match=message):
        ActivationExtractor(new(), 1, output=output).fit()


def test_a_module_of_another_width_is_refused_whenever_the_output_changes():
    model = gpt_neox()
    extractor = ActivationExtractor(model, 1).fit()
    model.gpt_neox.layers[1].mlp.register_forward_hook(lambda module, arguments, output: output[..., :3])
    model.gpt_neox.layers[1].forward = lambda hidden, **_: (model.gpt_neox.layers[1].mlp(hidden), hidden)[1]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'layers.1.mlp' .* gives hidden states of shape \(1, 2, 3\)"):
            extractor.set_params(output="mlp").fit()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.12.hook_resid_post", (12, "residual")),
        ("blocks.12.hook_resid_pre", (11, "residual")),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.3.hook_mlp_out", (3, "mlp")),
        ("blocks.3.hook_attn_out", (3, "attention")),
        ("blocks.3.attn.hook_z", None),
        ("blocks.3.hook_resid_mid", None),
        ("blocks.3.mlp.hook_post", None),
        ("hook_embed", None),
        ("model.layers.5.output", (5, "residual")),
        ("model.layers.5.input", (4, "residual")),
        ("model.layers.5", (5, "residual")),
        ("gpt_neox.layers.5.mlp.output", (5, "mlp")),
        ("model.layers.5.self_attn", (5, "attention")),
        ("model.layers.5.post_feedforward_layernorm.output", (5, "mlp")),
        ("model.layers.5.self_attn.o_proj.input", None),
        ("model.layers.5.post_attention_layernorm.output", None),
        ("transformer.h.0", (0, "residual")),
        ("transformer.h.11.attn.output", (11, "attention")),
        ("bert.encoder.layer.2", (2, "residual")),
        ("layers.10", (10, "residual")),
        ("layers.10.mlp", (10, "mlp")),
        ("embed_tokens", None),
        ("resid_post_layer_8", (8, "residual")),
        ("mlp_out_layer_8", (8, "mlp")),
        ("attn_out_layer_8", (8, "attention")),
        ("layer 8", None),
        ("", None),
        ("layers.x", None),
        ("layers.99999999999999999999", None),
    ],
)
def test_names_of_hooks(name, place):
    assert parse_hook(name) == place


def test_hooks_are_text():
    with pytest.raises(TypeError, match="hook=3 is a int; give the name of a hook"):
        parse_hook(3)
