import os
import sys
from pathlib import Path

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # or one of scikit-learn's checks skips; before scipy is imported

import matplotlib
import numpy as np
import pytest
from hypothesis import settings

matplotlib.use("Agg")
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "benchmarks")]
# How long an example takes says nothing here: machines are shared.
settings.register_profile("geofloor", deadline=None)
settings.load_profile("geofloor")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def server():
    """Return the way to processes that begin at once; there is one server of them in a run of the tests."""
    import kills

    return kills.server()
