from types import SimpleNamespace

import pytest
from small_models import SIZES, gpt_neox, new_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from geofloor import ActivationExtractor
from geofloor.language_models._dictionary_source import check_source, is_another_model


def warnings_of(source, extractor, recwarn):
    check_source(SimpleNamespace(source_=source), extractor)
    found = [str(each.message) for each in recwarn]
    recwarn.clear()
    return found


@pytest.mark.parametrize(
    ("hook", "warns"),
    [
        ("layers.1.mlp", False),
        ("blocks.1.hook_mlp_out", False),
        ("layer 1", False),
        ("somewhere", False),
        (None, False),
        ("layers.1", True),
        ("layers.2.mlp", True),
        ("layer 2", True),
        ("blocks.1.hook_resid_mid", True),
        ("blocks.1.attn.hook_z", True),
        ("embed_tokens", True),
    ],
)
def test_a_dictionary_of_another_place_is_noticed(hook, warns, recwarn):
    extractor = ActivationExtractor(gpt_neox(), 1, output="mlp").fit()
    found = warnings_of({"format": "x", "model": None, "hook": hook}, extractor, recwarn)
    assert len(found) == warns
    if warns:
        assert hook in found[0]
        assert "'layers.1.mlp' (layer=1, output='mlp')" in found[0]


def test_in_families_with_two_places_after_the_mlp_both_are_told_apart(recwarn):
    config = Gemma2Config(**SIZES, intermediate_size=32, num_key_value_heads=1, head_dim=8)
    extractor = ActivationExtractor(new_model(Gemma2ForCausalLM, config), 1, output="mlp").fit()
    assert warnings_of({"hook": "layers.1.mlp"}, extractor, recwarn)
    for name in ("blocks.1.hook_mlp_out", "model.layers.1.post_feedforward_layernorm.output"):
        assert not warnings_of({"hook": name}, extractor, recwarn)


@pytest.mark.parametrize("source", [None, 3, {}, {"hook": 3, "model": 4}])
def test_dictionaries_that_tell_nothing_are_taken(source, recwarn):
    assert not warnings_of(source, ActivationExtractor(gpt_neox(), 1).fit(), recwarn)


def test_a_dictionary_of_another_model_is_noticed(recwarn):
    model = gpt_neox()
    model.name_or_path = "EleutherAI/pythia-410m"
    model.base_model.name_or_path = "EleutherAI/pythia-410m"
    extractor = ActivationExtractor(model, 1).fit()
    (found,) = warnings_of({"hook": "layers.1", "model": "google/gemma-2-2b"}, extractor, recwarn)
    assert "model='google/gemma-2-2b'" in found
    assert "the teacher is 'EleutherAI/pythia-410m'" in found
    assert not warnings_of({"hook": "layers.1", "model": "pythia-410m"}, extractor, recwarn)


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ("gpt2-small", "openai-community/gpt2", False),
        ("gpt2", "EleutherAI/pythia-410m", True),
        ("pythia-410m", "EleutherAI/pythia-160m", True),
        ("pythia-410m", "EleutherAI/pythia-410m-deduped", True),
        ("pythia-410m", "/data/gpt2/my-teacher", False),
        ("gemma-v3-1b-pt", "google/gemma-3-1b-pt", False),
        ("gemma-2-2b", "google/gemma-2-2b-it", False),
        ("gemma-2-2b", "google/gemma-2-9b", True),
        ("gemma-2-2b", "google/gemma-3-1b", True),
        ("gemma-2b", "google/gemma-2b", False),
        ("meta-llama/Llama-3.1-8B", "Llama3_1-8B", False),
        ("Llama-3-8B", "meta-llama/Llama-3.1-8B", True),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base", False),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B", False),
        ("gpt2", "/hub/models--EleutherAI--pythia-70m/snapshots/3b9c" + 36 * "0", True),
        ("gpt2", "", False),
    ],
)
def test_names_of_models(first, second, other):
    assert is_another_model(first, second) is other
    assert is_another_model(second, first) is other
