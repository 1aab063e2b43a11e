import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator

from geofloor._training.settings import check_betas, plain_parameters


def test_parameters_become_plain_or_are_refused_by_name():
    class Estimator(BaseEstimator):
        def __init__(self, a=None, random_state=None):
            self.a, self.random_state = a, random_state

    for value, plain in [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.array([0.5, 0.25]), [0.5, 0.25]),
        (np.array(2), 2),
        (torch.tensor([1, 2]), [1, 2]),
        ((0.5, np.float64(0.25)), [0.5, 0.25]),
        ("x", "x"),
    ]:
        found = plain_parameters(Estimator(value, np.int64(3)))
        assert found == {"a": plain, "random_state": 3}
        assert json.loads(json.dumps(found)) == found
    for value in (object(), {"a": 1}, np.inf, [[1]], torch.device("cpu"), Decimal(1), Fraction(1, 4), lambda: 0):
        with pytest.raises(ValueError, match="a="):
            plain_parameters(Estimator(value))


def test_betas_are_two_numbers_below_one():
    for betas in ((0.9, 0.99), [0.9, 0.99], np.array([0.9, 0.99]), torch.tensor([0.9, 0.99], dtype=torch.float64)):
        assert check_betas("betas", betas) == (0.9, 0.99)
    for betas in (0.9, (0.9,), (0.9, 1.0), (-0.1, 0.5), (0.9, np.nan), "ab", None, (0.9, 0.9, 0.9)):
        with pytest.raises(ValueError, match="betas"):
            check_betas("betas", betas)
