"""Whatever is put in place of an argument, what comes of it is right, or an error that names it."""

import inspect

import pytest
from fuzzing import DECLINED, NAN_DOCUMENTED, RESULTS, cases, documented, kinds_for, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geofloor.forecasting import Law

BOUNDED = settings(
    derandomize=True, database=None, deadline=None, max_examples=15, suppress_health_check=list(HealthCheck)
)
# By scikit-learn or, for displays, in the case of the constructor.
INHERITED = {"get_params", "set_params", "plot", "frame"}
# By LossForecaster, with what it has checked.
OF_LAWS = {"known", "design", "linearize", "start", "params", "describe", "least", "check_runs"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_everything_that_is_documented_is_tried():
    wanted = set()
    for name, value in documented():
        if name in RESULTS:
            continue
        wanted.add(name)
        if inspect.isclass(value):
            wanted |= {
                f"{name}.{method}"
                for method, function in inspect.getmembers(value, callable)
                if not method.startswith("_")
                and getattr(function, "__module__", "").startswith("geofloor")
                and method not in INHERITED
                and not (method in OF_LAWS and issubclass(value, Law))
            }
    assert not wanted - cases().keys()
    assert not {case for case, *_ in DECLINED if case != "*"} - cases().keys()
    assert not NAN_DOCUMENTED.keys() - cases().keys()


@pytest.mark.parametrize("name", cases())
def test_calls_as_documented_work(name):
    result = outcome(name, {})
    assert result.fault is None
    assert result.kind == "success" or name.endswith(".fit_transform")  # widths are not what is fitted to


@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.parameters])
def test_odd_arguments_are_used_or_named(name):
    case = cases()[name]

    @BOUNDED
    @given(st.data())
    def check(data):
        parameters = data.draw(st.lists(st.sampled_from(case.parameters), min_size=1, max_size=2, unique=True))
        kinds = {parameter: data.draw(st.sampled_from(kinds_for(case, parameter))) for parameter in parameters}
        assert (outcome(name, kinds).fault, kinds) == (None, kinds)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.parameters])
def test_each_odd_value_of_each_argument_is_used_or_named(name):
    case = cases()[name]
    faults = []
    for parameter in case.parameters:
        for kind in kinds_for(case, parameter):
            if (fault := outcome(name, {parameter: kind}).fault) is not None:
                faults.append((parameter, kind, fault))
    assert not faults
