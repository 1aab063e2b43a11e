import numpy as np
import pytest
from small_models import BLOCKS, gpt_neox

from geofloor import ActivationExtractor


def test_a_block_that_changes_its_input_in_place_does_not_change_the_rows_before_it():
    model = gpt_neox()
    expected = ActivationExtractor(model, [0, 1]).transform(BLOCKS)
    model.gpt_neox.layers[2].register_forward_pre_hook(lambda module, arguments: arguments[0].zero_())
    for layer, rows in ActivationExtractor(model, [0, 1, 2]).transform(BLOCKS).items():
        if layer < 2:
            np.testing.assert_array_equal(rows, expected[layer])


@pytest.mark.parametrize(("layer", "missing"), [(1, 1), ([2, 0], 2)])
def test_a_block_that_never_runs_is_named(layer, missing, monkeypatch):
    model = gpt_neox()

    def embed(input_ids):
        return model.gpt_neox.embed_in(input_ids)

    monkeypatch.setattr(model.gpt_neox, "forward", embed)
    with pytest.raises(ValueError, match=f"forward pass of model type 'gpt_neox' never ran 'layers.{missing}'"):
        ActivationExtractor(model, layer).fit()
