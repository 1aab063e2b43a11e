import pytest
import torch
from small_families import PRINCIPAL, family_model
from small_models import BLOCKS, MODEL, N_VOCABULARY, WIDTH, gpt2, gpt_neox, llama

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
