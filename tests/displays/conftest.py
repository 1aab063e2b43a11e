import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from display_data import FLOORS, STEPS, STUDENTS, sweep
from sklearn.exceptions import ConvergenceWarning
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import DistilledStudent, FloorPredictor


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def summary():
    return sweep()


@pytest.fixture
def training():
    """Losses of the sweep over training steps."""
    steps = pd.DataFrame({"step": [0, 1, 10, 100]})
    points = sweep().query("teacher_width == 3")[["n_features", "alpha", "width", "floor", "Eq. 2"]]
    curves = points.merge(steps, how="cross")
    return curves.assign(loss=curves["floor"] * (1 + 1 / (1 + curves["step"])))


@pytest.fixture
def floors():
    rows = [(*student, floor, 0.01 * floor) for student, floor in zip(STUDENTS, FLOORS, strict=True)]
    return pd.DataFrame(rows, columns=["width", "seed", "floor", "floor_error"])


@pytest.fixture
def history(floors):
    curves = floors[["width", "seed", "floor"]].merge(pd.DataFrame({"step": STEPS}), how="cross")
    curves["eval_kl"] = curves["floor"] + 2.0 * np.exp(-curves["step"] / 20)
    return curves.drop(columns="floor").sample(frac=1.0, random_state=0, ignore_index=True)


@pytest.fixture
def predictor():
    return FloorPredictor(alpha=0.9).fit(1 / np.arange(1.0, 151))


@pytest.fixture(scope="session")
def students():
    """Two seeds of one width and one of another, distilled from a tiny teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        teacher = GPTNeoXForCausalLM(config).eval()
    tokens = np.random.default_rng(0).integers(32, size=(20, 6))
    settings = {"n_steps": 4, "warmup_steps": 1, "batch_size": 4, "eval_every": 2, "device": "cpu"}
    with pytest.warns(ConvergenceWarning, match="n_steps=4 are too few"):
        return [
            DistilledStudent(teacher, width, random_state=seed, **settings).fit(tokens)
            for width, seed in ((16, 3), (8, None), (16, 0))
        ]
