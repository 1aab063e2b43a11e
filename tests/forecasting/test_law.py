from dataclasses import dataclass

import numpy as np
import pytest

from geofloor import LossForecaster
from geofloor.forecasting import Law


def test_a_law_is_added_by_one_class():
    @dataclass(frozen=True)
    class Reciprocal(Law):
        parameters = ("scale", "baseline")
        bounds = ((0, np.inf), (0, np.inf))
        logarithmic = False

        def design(self, widths):
            return np.column_stack([1 / (1 + widths), np.ones(len(widths))])

        def describe(self, params):
            return f"{params['scale']:.1f} / (1 + d) + {params['baseline']:.1f}"

    fitted = LossForecaster(Reciprocal()).fit([9, 99], [0.8, 0.35])
    assert fitted.params_ == pytest.approx({"scale": 5.0, "baseline": 0.3})
    assert fitted.law_.describe(fitted.params_) == "5.0 / (1 + d) + 0.3"
    np.testing.assert_allclose(fitted.predict([0, 19]), [5.3, 0.55])
    assert fitted.decide(19, 0.4).min_width == fitted.min_width(0.4) == 49


def test_a_law_without_parts_says_which_are_missing():
    class Empty(Law):
        parameters = ("a",)

    with pytest.raises(NotImplementedError, match="Empty defines no bounds"):
        LossForecaster(Empty()).fit([1, 2], [2, 1])
    Empty.bounds = ((0, 1),)
    with pytest.raises(NotImplementedError, match="Empty defines neither design nor linearize"):
        LossForecaster(Empty()).fit([1, 2], [2, 1])
    assert Empty().describe({"a": 1 / 3}) == "Empty(a=0.3333)"
