from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.base import clone

from geofloor import FloorPredictor
from geofloor.theory import (
    Allocation,
    AutoAllocation,
    BlocksAllocation,
    CurveAllocation,
    CutoffAllocation,
    DistortionCurve,
    Division,
    Shares,
    WaterfillingAllocation,
    WidthAllocation,
    cutoff_curve,
)

IMPORTANCES = 1 / np.arange(1.0, 61)


@dataclass(frozen=True)
class EveryFeatureAlike(Allocation):
    """A toy: each dimension takes the same share off every feature's loss."""

    useful: int = 10

    def divide(self, features):
        return Alike(features.charges, self.useful)


class Alike(Division):
    def __init__(self, charges, useful):
        self.charges, self.useful = charges, useful

    def floors(self, widths):
        return self.charges.sum() * np.maximum(1.0 - np.asarray(widths) / self.useful, 0.0)

    def shares(self, width):
        ones = np.ones(len(self.charges))
        return Shares(ones * width / len(ones), ones * max(1.0 - width / self.useful, 0.0))


def test_a_new_allocation_is_one_class():
    predictor = FloorPredictor(0.9, allocation=EveryFeatureAlike(useful=4)).fit([4.0, 2.0, 1.0, 1.0])
    assert predictor.predict([0, 1, 2, 4]).tolist() == [8.0, 6.0, 4.0, 0.0]
    assert predictor.min_width([6.0, 0.0, 100.0]).tolist() == [1, 4, 0]
    assert predictor.kept_features([0, 1]).tolist() == [0, 4]
    assert predictor.allocate(1)[1:] == (0, 4, 0, 0.0, 6.0)
    assert repr(predictor) == "FloorPredictor(allocation=EveryFeatureAlike(useful=4), alpha=0.9)"
    assert clone(predictor).allocation == EveryFeatureAlike(useful=4)
    with pytest.raises(ValueError, match="EveryFeatureAlike.*has no measured students"):
        predictor.predict([1], return_bounds=True)
    with pytest.raises(ValueError, match="capacity='minimax' is not used with allocation=EveryFeatureAlike"):
        FloorPredictor(0.9, allocation=EveryFeatureAlike(), capacity="minimax").fit([1.0])


@pytest.mark.parametrize(
    ("name", "options", "allocation"),
    [
        ("cutoff", {}, CutoffAllocation()),
        ("cutoff", {"capacity": "minimax", "teacher_width": 100}, CutoffAllocation("minimax", 100)),
        ("waterfilling", {}, WaterfillingAllocation()),
        ("waterfilling", {"curve": "deep", "amplitude": "constant"}, WaterfillingAllocation("deep", "constant")),
        ("blocks", {}, BlocksAllocation()),
        ("blocks", {"starts": "best"}, BlocksAllocation(starts="best")),
        ("auto", {}, AutoAllocation()),
        ("auto", {"curve": "deep", "starts": "best"}, AutoAllocation("deep", starts="best")),
    ],
)
def test_a_name_with_options_is_the_object_with_them(name, options, allocation):
    named = FloorPredictor(0.9, allocation=name, **options).fit(IMPORTANCES)
    given = FloorPredictor(0.9, allocation=allocation).fit(IMPORTANCES)
    assert named.allocation_ == given.allocation_ == allocation
    np.testing.assert_array_equal(named.predict([0, 4, 40]), given.predict([0, 4, 40]))


def test_a_curve_stands_for_its_allocation():
    curve = cutoff_curve(4.0)
    assert FloorPredictor(0.9, allocation=curve).fit(IMPORTANCES).allocation_ == CurveAllocation(curve)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"allocation": "greedy"}, "allocation='greedy'"),
        ({"allocation": None}, "allocation=None is unknown; use one of 'cutoff', .*an Allocation, or a Dist"),
        ({"allocation": CutoffAllocation}, "allocation=.* is unknown"),  # the class in place of an object
        ({"allocation": "auto", "curve": "shallow"}, "curve='shallow'"),
        ({"allocation": "auto", "starts": "worst"}, "starts='worst'"),
        ({"allocation": "auto", "amplitude": "gamma"}, "amplitude='gamma'"),
    ],
)
def test_unknown_allocations_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        FloorPredictor(0.9, **parameters).fit([1.0, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CutoffAllocation("exact"), "capacity='exact' is unknown"),
        (lambda: CutoffAllocation(teacher_width=0), "teacher_width=0"),
        (lambda: WaterfillingAllocation(curve=None), "curve=None is unknown"),
        (lambda: BlocksAllocation(starts="worst"), "starts='worst' is unknown"),
        (lambda: AutoAllocation(amplitude="gamma"), "amplitude='gamma' is unknown"),
    ],
)
def test_an_object_refuses_unknown_options_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_objects_of_another_class_are_refused():
    with pytest.raises(TypeError, match="distortion='relu' is a str; give a DistortionCurve"):
        CurveAllocation("relu")
    with pytest.raises(TypeError, match="features=3 is a int; FloorPredictor.fit makes ChargedFeatures"):
        AutoAllocation().divide(3)


@pytest.mark.parametrize(
    ("allocation", "unused"),
    [
        ("cutoff", {"curve": "relu"}),
        ("cutoff", {"curve": "nonsense"}),
        ("cutoff", {"amplitude": 3}),
        ("cutoff", {"starts": "mean"}),
        ("waterfilling", {"capacity": "asymptotic"}),
        ("waterfilling", {"starts": "best"}),
        ("waterfilling", {"teacher_width": 576}),
        ("blocks", {"capacity": "minimax"}),
        ("auto", {"capacity": lambda _: 2.0}),
        (cutoff_curve(4.0), {"curve": "deep"}),
        (cutoff_curve(4.0), {"capacity": "minimax"}),
        (AutoAllocation(), {"capacity": "minimax"}),
        (AutoAllocation(), {"curve": "deep"}),
    ],
)
def test_an_option_that_the_allocation_does_not_use_is_an_error(allocation, unused):
    with pytest.raises(ValueError, match=f"{next(iter(unused))}=.* is not used with allocation=.*leave it None"):
        FloorPredictor(0.9, allocation=allocation, **unused).fit([1.0, 0.5])


def test_an_option_beside_an_object_that_has_it_is_an_error_that_names_the_object():
    with pytest.raises(ValueError, match=r"leave it None and give CutoffAllocation\(capacity=\.\.\.\)"):
        FloorPredictor(0.9, allocation=CutoffAllocation(), capacity="minimax").fit([1.0, 0.5])


def test_a_law_of_amplitudes_beside_measured_means_is_an_error():
    with pytest.raises(ValueError, match="amplitude='constant' is not used with a feature table that has means"):
        FloorPredictor(allocation="auto", amplitude="constant").fit([[1.0, 0.1, 0.3]])


def test_options_are_cloned_as_given():
    given = {"allocation": "auto", "curve": "deep", "amplitude": "constant", "starts": "best"}
    assert {name: clone(FloorPredictor(0.9, **given)).get_params()[name] for name in given} == given


def test_a_curve_of_ones_own_is_water_filled_and_that_of_the_cut_off_is_eq_2():
    g = FloorPredictor(0.9).fit(IMPORTANCES).capacity_
    whole = (np.array([0, 13, 50]) + 1e-9) / g
    own = FloorPredictor(0.9, allocation=cutoff_curve(g)).fit(IMPORTANCES)
    np.testing.assert_allclose(own.predict(whole), FloorPredictor(0.9).fit(IMPORTANCES).predict(whole), rtol=1e-6)
    assert own.critical_width_ == pytest.approx(60 / g)


def test_the_loss_that_a_curve_leaves_is_a_target_out_of_reach():
    curve = DistortionCurve([0.0, 1.0, 3.0], [1.0, 0.5, 0.25])  # never loses less than a quarter
    predictor = FloorPredictor(0.9, allocation=CurveAllocation(curve)).fit([1.0, 1.0])
    assert predictor.critical_width_ == 6.0
    assert predictor.min_width([0.5, 0.49, 0.0, 2.0]).tolist() == [6, -1, -1, 0]
    assert predictor.min_width(0.1) == -1
    flat = FloorPredictor(0.9, allocation=DistortionCurve([0.0, 1e300], [1.0, 0.0])).fit([1.0, 1.0])
    assert flat.min_width([0.0, 2.0]).tolist() == [-1, 0]


@pytest.mark.parametrize("allocation", ["waterfilling", "blocks", "auto"])
def test_a_target_that_is_a_predicted_floor_has_the_first_width_with_that_floor(allocation):
    # Sums of charges differ in their last digits with the widths that are predicted together.
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n_features = int(rng.integers(1, 60))
        predictor = FloorPredictor(rng.uniform(0.3, 0.999), allocation=allocation).fit(
            rng.pareto(1.0, n_features) + 0.01
        )
        floors = predictor.predict(np.arange(n_features + 1))
        np.testing.assert_array_equal(
            predictor.min_width(floors), [np.argmax(floors <= floor * (1 + 1e-12)) for floor in floors]
        )
        assert predictor.min_width(0.0) <= n_features


def test_an_allocation_of_one_width_is_a_named_tuple():
    found = FloorPredictor(0.9).fit([2.0, 1.0]).allocate(0)
    assert isinstance(found, WidthAllocation)
    assert (found.n_full, found.n_dropped, found.dropped) == (0, 2, 3.0)


def test_bounds_need_measured_students():
    for allocation in ("cutoff", cutoff_curve(4.0)):
        with pytest.raises(ValueError, match="return_bounds=True"):
            FloorPredictor(0.9, allocation=allocation).fit([1.0, 0.5]).predict([1], return_bounds=True)
