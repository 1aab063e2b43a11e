import re

import pytest

from geofloor import SparseAutoencoder
from geofloor.features._autoencoder_doubts import Outcome, find_doubts
from geofloor.features._autoencoder_settings import resolve_settings


def outcome(**changes):
    """Make the outcome of a faultless fit, except for `changes`."""
    settings = resolve_settings(SparseAutoencoder(1000, n_epochs=5), None, 64)
    row = {"loss": 1.0, "l0": 30.0, "dead": 0.1}
    history = [{**row, "step": step, **changes.get("row", {})} for step in range(1, changes.get("n_steps", 2000) + 1)]
    for step, each in enumerate(history):
        each["loss"] -= changes.get("slope", 0.0) * step
        each["l0"] += changes.get("l0_slope", 0.0) * (len(history) - step)
    return Outcome(
        history,
        settings,
        n_inputs=changes.get("n_inputs", 512),
        n_rows=changes.get("n_rows", 50_000),
        held_out=changes.get("held_out", 0.9),
        l0=changes.get("l0"),
        noise=changes.get("noise", 0.7),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_rows": 4999}, "it saw 4,999 rows only; give at least 5,000"),
        ({"n_steps": 499}, "it took 499 steps only; raise n_epochs=5"),
        ({"slope": 4e-4}, "the loss still fell by 4.0% of the first over the last tenth of the steps; raise n_epochs"),
        ({"l0_slope": 0.05}, "L0 still fell by 5 over the last tenth of the steps"),
        ({"row": {"l0": 101.0}}, "101 of 1,000 latents fire per token, which is not sparse; lower l0"),
        ({"n_inputs": 30}, "rows have 30 codes and 30 inputs, and .* copy any row; lower l0"),
        ({"row": {"dead": 0.7}}, "70% of the latents are dead; lower learning_rate"),
        ({"held_out": 0.4}, "explains 40% of the variance of held-out rows only"),
        ({"noise": 0.895}, "hardly better than Gaussian noise of the same covariance"),
    ],
)
def test_each_reason_to_doubt_a_fit_has_its_remedy(changes, reason):
    assert find_doubts(outcome()) == []
    (found,) = find_doubts(outcome(**changes))
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("l0", "message"),
    [
        (30.0, None),
        (34.0, "rows have 34 codes on average, not l0=30; raise l0 or n_epochs"),
        (26.0, "rows have 26 codes on average, not l0=30; lower l0 or raise n_latents"),
    ],
)
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "relu"])
def test_codes_off_the_target_are_a_reason_to_doubt(activation, l0, message):
    settings = resolve_settings(SparseAutoencoder(1000, activation=activation, l0=30), None, 64)
    for changed in ({"l0": l0}, {"row": {"l0": l0}}):  # of held-out rows, or without them of the last batches
        found = find_doubts(outcome(**changed)._replace(settings=settings))
        assert found == ([] if message is None else [message])
