import numpy as np
import pytest
import torch

from geofloor._training.seeds import OwnDraws, draw_seed, step_generator


def test_seeds():
    assert draw_seed(3) == draw_seed(3) != draw_seed(4)
    assert step_generator(0, 1).integers(1000) == step_generator(0, 1).integers(1000)
    assert step_generator(0, 1).integers(10**9) != step_generator(0, 2).integers(10**9)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.nn.Linear(7, 5).weight,
        lambda: torch.nn.init.trunc_normal_(torch.empty(30)),
        lambda: torch.rand(40),
        lambda: torch.randint(9, (40,)),
        lambda: torch.randint(2, 9, (40,)),
        lambda: torch.randperm(40),
        lambda: torch.empty(40).bernoulli_(0.3),
    ],
)
def test_own_draws_are_those_of_the_global_seed_which_they_leave_alone(draw):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = draw()
        torch.manual_seed(4)
        state = torch.get_rng_state()
        with OwnDraws(3):
            found = draw()
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, expected)


def test_own_draws_leave_a_generator_that_was_given_and_meta_tensors():
    with OwnDraws(3):
        found = torch.rand(5, generator=torch.Generator().manual_seed(0))
        assert torch.empty(3, device="meta").normal_().device.type == "meta"
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("seed", [-1, 2**40, 3.5, "x", [1], np.array(3), torch.tensor(2), 1j])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match="random_state=.* must be an integer from 0 to 4294967295"):
        draw_seed(seed)
