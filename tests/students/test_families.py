import pytest
import torch
from small_families import PRINCIPAL, RANDOM
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
)

from geofloor.students import count_parameters, student_config

PYTHIA_410M = GPTNeoXConfig(
    vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)


SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 100000},
)


# width, heads, FFN, parameters in millions
TABLE_8 = [(128, 8, 512, 18), (256, 16, 1024, 45), (512, 16, 2048, 127), (768, 16, 3072, 247), (1024, 16, 4096, 405)]


@pytest.mark.parametrize(("width", "heads", "ffn", "millions"), TABLE_8)
def test_table_8(width, heads, ffn, millions):
    config = student_config(PYTHIA_410M, width)
    assert (config.num_hidden_layers, config.vocab_size) == (24, 50304)
    assert (config.num_attention_heads, config.intermediate_size) == (heads, ffn)
    assert config.max_position_embeddings == PYTHIA_410M.max_position_embeddings
    # The table gives whole millions, so for the narrowest (17.64) it is no more exact than 2.8%.
    assert round(count_parameters(config) / 1e6) == millions
    assert count_parameters(config) / 1e6 == pytest.approx(millions, rel=0.0202 if width == 128 else 0.01)


def test_the_teachers_own_width_has_the_teachers_shapes():
    for config in (PYTHIA_410M, SMOLLM2_135M, GPT2Config()):
        assert count_parameters(student_config(config, config.hidden_size)) == count_parameters(config)


@pytest.mark.parametrize(
    ("width", "heads", "key_value_heads", "ffn"),
    [(576, 9, 3, 1536), (288, 9, 3, 768), (192, 6, 2, 512), (64, 4, 2, 171)],
)
def test_llama_keeps_groups_of_queries_and_the_ratio_of_the_feed_forward(width, heads, key_value_heads, ffn):
    config = student_config(SMOLLM2_135M, width)
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, key_value_heads)
    assert (config.head_dim, config.intermediate_size) == (width // heads, ffn)
    assert config.rope_parameters["rope_theta"] == 100000
    assert config.tie_word_embeddings


def test_the_configuration_given_is_left_alone():
    before = SMOLLM2_135M.to_dict()
    student_config(SMOLLM2_135M, 96)
    assert SMOLLM2_135M.to_dict() == before


@pytest.mark.parametrize(
    ("config", "width", "near"),
    [
        (PYTHIA_410M, 131, "130 or 132"),
        (PYTHIA_410M, 1, "2 or"),
        (SMOLLM2_135M, 7, "6 or 8"),
        (GPT2Config(), 131, "130 or 132"),
    ],
)
def test_a_width_that_no_head_count_divides_is_refused_with_one_that_works(config, width, near):
    with pytest.raises(ValueError, match=f"width={width} can't be divided .*use {near}"):
        student_config(config, width)


@pytest.mark.parametrize("n_heads", [1, 4, 16, 32])
def test_heads_can_be_chosen(n_heads):
    assert student_config(PYTHIA_410M, 128, n_heads=n_heads).num_attention_heads == n_heads
    assert student_config(GPT2Config(), 128, n_heads=n_heads).n_head == n_heads


@pytest.mark.parametrize(("n_heads", "key_value_heads"), [(9, 3), (3, 1), (4, 2)])
def test_chosen_heads_share_keys_and_values_in_the_teachers_groups_where_they_can(n_heads, key_value_heads):
    config = student_config(SMOLLM2_135M, 288 if n_heads != 4 else 64, n_heads=n_heads)
    assert (config.num_attention_heads, config.num_key_value_heads) == (n_heads, key_value_heads)
    assert config.head_dim * n_heads == config.hidden_size


@pytest.mark.parametrize(
    ("config", "n_heads", "possible"),
    [
        (PYTHIA_410M, 5, r"\[1, 2, 3, 4, 6, 8, 12\]"),
        (GPT2Config(), 5, r"\[1, .*, 24\]"),
        (SMOLLM2_135M, 24, r"\[1, 2, 3, 4, 6, 12\]"),
    ],
)
def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do(config, n_heads, possible):
    with pytest.raises(ValueError, match=f"n_heads={n_heads} can't divide width=24.*use one of {possible}"):
        student_config(config, 24, n_heads=n_heads)


@pytest.mark.parametrize(
    ("width", "heads", "rotated"),
    [(128, 8, 4), (896, 16, 14), (832, 16, 12), (720, 16, 12), (24, 1, 6), (7, 1, 2), (3, 1, 2)],
)
def test_rotated_dimensions_are_the_teachers_share_of_a_head_to_an_even_number(width, heads, rotated):
    student = student_config(PYTHIA_410M, width)
    with torch.device("meta"):
        attention = GPTNeoXForCausalLM(student).gpt_neox.layers[0].attention
    assert (student.num_attention_heads, attention.rotary_ndims) == (heads, rotated)


@pytest.mark.parametrize("width", [0, -8, 8.0, True, "8"])
def test_a_width_that_is_no_positive_integer_is_refused(width):
    with pytest.raises(ValueError, match="width="):
        student_config(PYTHIA_410M, width)


def test_width_zero_is_refused_with_the_function_that_gives_its_loss():
    with pytest.raises(ValueError, match="width=0 leaves a student no dimensions.*zero_width_kl"):
        student_config(PYTHIA_410M, 0)


@pytest.mark.parametrize("config", [*PRINCIPAL.values(), *RANDOM.values()], ids=lambda config: config.model_type)
def test_any_decoder_with_the_usual_fields_has_students(config):
    own, half = (student_config(config, config.hidden_size // divisor) for divisor in (1, 2))
    if config.model_type not in ("gpt2", "gpt_neox"):  # which have 4d units by Table 8
        assert count_parameters(own) == count_parameters(config)
    assert type(half) is type(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(half)
    assert model.get_input_embeddings().weight.shape == (config.vocab_size, config.hidden_size // 2)
    assert half.num_hidden_layers == config.num_hidden_layers
    assert half.tie_word_embeddings == config.tie_word_embeddings


SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 128, "vocab_size": 40, "pad_token_id": None}


@pytest.mark.parametrize(
    ("heads", "width", "expected"),
    [
        ((5, 1), 64, (5, 1)),
        ((4, 2), 32, (2, 1)),
        ((4, 2), 48, (4, 2)),
        ((4, 1), 32, (4, 1)),
        ((4, 4), 16, (1, 1)),
        ((4, 2), 6, (2, 1)),
    ],
)
def test_heads_with_a_size_of_their_own_keep_it_and_their_number_falls(heads, width, expected):
    config = MistralConfig(**SIZES, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=24)
    student = student_config(config, width)
    assert (student.num_attention_heads, student.num_key_value_heads, student.head_dim) == (*expected, 24)


def test_heads_with_a_rotary_factor_per_dimension_keep_their_size():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": 8 * [1.0], "long_factor": 8 * [2.0]}
    rope["original_max_position_embeddings"] = 32
    config = Phi3Config(**SIZES, num_attention_heads=4, max_position_embeddings=64, rope_parameters=rope)
    student = student_config(config, 32)
    assert (student.head_dim, student.num_attention_heads) == (16, 2)
    with torch.device("meta"):
        attention = AutoModelForCausalLM.from_config(student).model.layers[0].self_attn
    assert attention.qkv_proj.weight.shape == (3 * 2 * 16, 32)


def test_a_number_of_heads_that_keep_their_size_can_be_chosen():
    config = PRINCIPAL["qwen3"]
    student = student_config(config, 16, n_heads=4)
    assert (student.num_attention_heads, student.num_key_value_heads, student.head_dim) == (4, 2, 16)
    with pytest.raises(ValueError, match=r"n_heads=3 can't divide width=16; use one of \[1, 2, 4, 8, 16\]"):
        student_config(config, 16, n_heads=3)


@pytest.mark.parametrize(
    "config",
    [
        SMOLLM2_135M,
        MistralConfig(**{**SIZES, "hidden_size": 576}, num_attention_heads=9, num_key_value_heads=3, head_dim=64),
    ],
)
def test_the_size_of_heads_can_be_chosen(config):
    def sizes(**heads):
        student = student_config(config, 144, **heads)
        return student.num_attention_heads, student.num_key_value_heads, student.head_dim

    assert sizes(head_dim=64) == (9, 3, 64)
    assert sizes(head_dim=32, n_heads=6) == (6, 2, 32)
    with pytest.raises(ValueError, match=r"head_dim=7 is odd.*use 8"):
        sizes(head_dim=7)
    with pytest.raises(ValueError, match=r"n_heads=9 can't divide width=100; use one of \[1, 2, 4"):
        student_config(config, 100, head_dim=64)


@pytest.mark.parametrize("config", [PYTHIA_410M, GPT2Config()])
def test_heads_that_share_the_width_have_no_size_to_choose(config):
    with pytest.raises(ValueError, match=f"head_dim=64 can't be chosen for a {type(config).__name__}"):
        student_config(config, 128, head_dim=64)


def test_opt_embeds_tokens_in_no_more_dimensions_than_its_student_has():
    config = OPTConfig(hidden_size=64, num_attention_heads=4, ffn_dim=128, word_embed_proj_dim=32)
    assert [student_config(config, width).word_embed_proj_dim for width in (16, 48)] == [16, 32]


def test_other_classes_are_refused_until_they_are_registered():
    class OddConfig(PreTrainedConfig):
        model_type = "odd"

    with pytest.raises(ValueError, match="no vocab_size or hidden_size or .*student_config.register"):
        student_config(OddConfig(), 64)
    with pytest.raises(ValueError, match="config is a dict, for which there is no rule"):
        student_config({}, 64)

    @student_config.register
    def _(config: OddConfig, width):
        return OddConfig(hidden_size=width)

    assert student_config(OddConfig(), 64).hidden_size == 64


def test_sizes_that_a_configuration_refuses_are_named():
    class StrictConfig(PreTrainedConfig):
        model_type = "strict"

        def __init__(self, hidden_size=64, **options):
            if hidden_size % 64:
                raise RuntimeError("no multiple of 64")
            super().__init__(hidden_size=hidden_size, num_attention_heads=2, vocab_size=40, **options)

    with pytest.raises(ValueError, match=r"hidden_size=32.*no multiple of 64.*another width"):
        student_config(StrictConfig(), 32)
