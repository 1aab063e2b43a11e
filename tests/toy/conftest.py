import pytest
from sklearn.exceptions import ConvergenceWarning
from small_sweeps import SMALL

from geofloor.toy import toy_sweep


@pytest.fixture(scope="session")
def sweep():
    with pytest.warns(ConvergenceWarning):
        return toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL)
