import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from small_families import PRINCIPAL, family_model
from small_models import BLOCKS, MODEL, N_VOCABULARY, WIDTH, gpt2, gpt_neox, llama, with_padded_vocabulary

from geofloor import AblationPredictor, BottleneckPredictor
from geofloor.language_models import dictionary_report, zero_width_kl
from geofloor.language_models._logits import LanguageModel


class Capped(torch.nn.Module):
    """Logits that are no product of hidden states and unembedding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return torch.tanh(self.model(ids).logits)


@pytest.mark.parametrize("new", [gpt_neox, gpt2, llama])
def test_logits_are_those_of_the_model_and_stay_unevaluated_where_they_can(new):
    module, ids = new(), torch.from_numpy(BLOCKS)
    with torch.no_grad():
        found, expected = LanguageModel(module, "model").logits(ids), module(ids).logits.flatten(0, 1)
        assert found.rows.shape == (ids.numel(), WIDTH)
        torch.testing.assert_close(found.compute(slice(None), 1.0), expected)
        torch.testing.assert_close(found.at(torch.tensor([3, 5])).compute(slice(None), 0.5), 0.5 * expected[[3, 5]])
        capped = LanguageModel(Capped(module), "model").logits(ids)
        assert capped.weight is None
        torch.testing.assert_close(capped.rows, torch.tanh(expected))


def test_capped_logits_are_evaluated_even_where_they_are_too_small_to_show_the_cap():
    module = family_model(PRINCIPAL["gemma2"])
    module.get_input_embeddings().weight[0] = 0.0  # the token on which the model is probed
    ids = torch.tensor([[5, 7, 9]])
    found = LanguageModel(module, "model").logits(ids)
    assert found.weight is None
    torch.testing.assert_close(found.rows, module(ids).logits.flatten(0, 1))


def test_modules_without_logits_are_named():
    with pytest.raises(ValueError, match="the teacher is a Linear, which can't take token ids"):
        LanguageModel(torch.nn.Linear(2, 2), "the teacher")
    with pytest.raises(ValueError, match="the teacher is a Flatten, which gives no logits"):
        LanguageModel(torch.nn.Flatten(), "the teacher")


def test_blocks_that_are_not_there_are_refused():
    model = LanguageModel(MODEL, "the teacher")
    model.check_layer(-3)
    with pytest.raises(ValueError, match="layer=3 is not there: the model has 3 blocks"):
        model.check_layer(3)
    assert model.n_tokens == model.n_vocabulary == N_VOCABULARY


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_vocabulary_is_cut_to_its_first_tokens(wrapped):
    padded, ids = with_padded_vocabulary(gpt_neox()), torch.from_numpy(BLOCKS)
    model = LanguageModel(Capped(padded) if wrapped else padded, "the teacher", n_vocabulary=N_VOCABULARY)
    expected = LanguageModel(Capped(gpt_neox()) if wrapped else gpt_neox(), "the teacher").logits(ids)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids).compute(slice(None), 1.0), expected.compute(slice(None), 1.0))
    assert model.n_tokens == model.n_vocabulary == N_VOCABULARY
    for wrong in (1, 46, "all"):
        with pytest.raises(ValueError, match=f"n_vocabulary={wrong!r} must be a whole number .* at most 45"):
            LanguageModel(padded, "the teacher", n_vocabulary=wrong)


def test_all_measures_of_a_padded_teacher_are_those_without_its_padding():
    plain = gpt_neox()
    padded = with_padded_vocabulary(plain)

    def measure(model, **options):
        bound = BottleneckPredictor(model, widths=[2, 4], n_steps=5, random_state=0, **options).fit(BLOCKS)
        report = dictionary_report(model, 1, PCA(3).fit(np.eye(WIDTH)), BLOCKS, **options)
        return (
            AblationPredictor(model, 1, n_points=4, **options).fit(BLOCKS).curve_.kl,
            bound.curve_.low,
            [report.kl_div_with_sae, report.ce_loss_with_sae],
            [zero_width_kl(model, BLOCKS, **options)],
        )

    for found, expected, other in zip(
        measure(padded, n_vocabulary=N_VOCABULARY), measure(plain), measure(padded), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        assert not np.allclose(other, expected, rtol=1e-3)
