import pytest
import torch
from small_models import N_LAYERS, WIDTH, gpt2, gpt_neox, llama

from geofloor import ActivationExtractor
from geofloor.language_models._blocks import block_output, with_block_output


def test_lists_inside_a_block_are_not_the_blocks():
    model = gpt_neox()
    model.gpt_neox.layers[0].mlp.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(N_LAYERS))
    assert ActivationExtractor(model, 0).fit().block_name_ == "layers.0"


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize(
    ("new", "path"), [(gpt_neox, "gpt_neox.layers.1"), (gpt2, "transformer.h.1"), (llama, "model.layers.1")]
)
def test_hidden_states_are_read_and_replaced_in_tensors_and_tuples(new, path, as_tuple):
    model = new()
    block = model.get_submodule(path)
    seen = []

    def replace(module, arguments, output):
        output = (block_output(output), "cache") if as_tuple else block_output(output)
        seen.append(block_output(output))
        replaced = with_block_output(output, torch.zeros_like(seen[-1]))
        assert isinstance(replaced, tuple) == as_tuple
        assert not as_tuple or replaced[1] == "cache"
        return block_output(replaced)

    block.register_forward_hook(replace)
    following = model.get_submodule(path.replace("1", "2"))
    following.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(torch.arange(6).view(1, 6))
    assert seen[0].shape == (1, 6, WIDTH)
    assert seen[0].any()
    assert not seen[1].any()
