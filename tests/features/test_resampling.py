import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from geofloor import FeatureStatistics
from geofloor.features import resampled_tables


def test_resampled_tables_refuse_bad_arguments_at_once():
    blocks = [FeatureStatistics().fit(np.eye(3)) for _ in range(3)]
    for wrong in (-1, 0, 2.5, "9"):
        with pytest.raises(ValueError, match="n_resamples="):
            resampled_tables(blocks, n_resamples=wrong)
    with pytest.raises(NotFittedError):
        resampled_tables([*blocks, FeatureStatistics()])
    with pytest.raises(TypeError, match=r"blocks\[0\]=1 is a int"):
        resampled_tables([1, 2])
    with pytest.raises(TypeError, match="blocks=3 is a int"):
        resampled_tables(3)
    with pytest.raises(ValueError, match="latents"):
        resampled_tables([*blocks, FeatureStatistics().fit(np.eye(4))])
