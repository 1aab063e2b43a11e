import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # or one of scikit-learn's checks skips; before scipy is imported

import matplotlib
import numpy as np
import pytest
from hypothesis import settings

matplotlib.use("Agg")
# How long an example takes says nothing here: machines are shared.
settings.register_profile("geofloor", deadline=None)
settings.load_profile("geofloor")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
