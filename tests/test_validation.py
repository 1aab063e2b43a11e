import contextlib
import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from geofloor._validation import (
    check_array_of_numbers,
    check_choice,
    check_csr,
    check_flag,
    check_iterable,
    check_number,
    check_numeric,
    check_object,
    check_path,
    plain_array,
    shown,
    warn_caller,
)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3)])
def test_a_whole_number_of_any_library_becomes_pythons(value):
    assert check_number("n", value, 1, whole=True) == 3
    assert type(check_number("n", value, 1, whole=True)) is int
    assert type(check_number("n", value, 1)) is float


@pytest.mark.parametrize(
    "value",
    [True, np.True_, None, "3", 3.5, np.nan, np.inf, 10**400, 3j, [3], np.array([3, 4]), {}, np.ma.masked, 0],
)
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"^n_steps="):
        check_number("n_steps", value, 1, whole=True)


def test_fractions_are_numbers_and_ends_may_be_open():
    assert check_number("x", Fraction(1, 2), 0, 1) == 0.5
    with pytest.raises(ValueError, match="x=1 must be a finite number of at least 0 and below 1"):
        check_number("x", 1, 0, 1, open_high=True)
    with pytest.raises(ValueError, match="x=0 must be a finite number above 0"):
        check_number("x", 0, 0, open_low=True)


@given(
    value=st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans(), st.binary(), st.complex_numbers())
)
def test_a_number_is_in_its_interval_or_refused(value):
    inside = isinstance(value, int | float) and not isinstance(value, bool) and -2 <= value <= 7
    if inside:
        assert check_number("x", value, -2, 7) == value
    else:
        with pytest.raises(ValueError, match="^x="):
            check_number("x", value, -2, 7)


def test_choices_flags_and_objects():
    assert check_choice("starts", "mean", ("best", "mean")) == "mean"
    assert check_choice("p", None, (None, "mean")) is None
    for value in ("median", 3, [], np.array(["mean"])):
        with pytest.raises(ValueError, match=r"starts=.* is unknown; use one of 'best', 'mean'"):
            check_choice("starts", value, ("best", "mean"))
    assert check_flag("f", np.True_) is True
    with pytest.raises(ValueError, match="f='yes' must be True or False"):
        check_flag("f", "yes")
    with pytest.raises(TypeError, match="ax=3 is a int; give a matplotlib Axes"):
        check_object("ax", 3, dict, "give a matplotlib Axes")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.float64])
def test_tensors_of_every_dtype_are_read(dtype):
    values = torch.tensor([0.5, 1.0, 2.0]).to(dtype)
    np.testing.assert_array_equal(check_array_of_numbers(values, "x"), values.double().numpy())


def test_a_tensor_that_requires_grad_is_read():
    np.testing.assert_array_equal(plain_array(torch.ones(2, requires_grad=True), "x"), [1.0, 1.0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ma.masked_greater(np.arange(4.0), 2), "1 masked value"),
        ("activations.npy", "is text"),
        ({"a": 1}, "is a dict"),
        ({1.0, 2.0}, "is a set"),
        (iter([1.0]), "is a list_iterator"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "dates and durations"),
        (pd.Series(pd.to_timedelta([1], unit="s")), "dates and durations"),
        ([datetime.timedelta(1)], "float64 can't"),
        (np.array([1j]), "Complex data not supported"),
        ([1j], "Complex data not supported"),
        ([1.0, "2"], "text"),
        ([1.0, None], "contains NaN"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        ([10**400], "float64"),
        ([np.nan], "contains NaN"),
        ([-np.inf], "contains infinity"),
        ([], "is empty"),
        (3.0, r"has shape \(\)"),
        (np.ones((2, 2)), r"has shape \(2, 2\)"),
        (torch.eye(2).to_sparse(), "sparse tensor"),
        (Dataset.from_dict({"states": [[1.0]]}), r"with the columns \['states'\]"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=rf"^x.*{message}"):
        check_array_of_numbers(values, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["3", "4"], "holds text"),
        (np.array([1.0, "4"], dtype=object), "'4', which is text"),
        ([None, 1.0], "None and so contains NaN"),
        (pd.Series([pd.NA, 1.0], dtype=object), "<NA> and so contains NaN"),
        ([10**400, 1], "float64 can't"),
        ("3", "is text"),
        ([1j], "Complex data not supported"),
    ],
)
def test_what_scikit_learn_misreads_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=rf"^x.*{message}"):
        check_numeric(values, "x")


def test_data_for_scikit_learn_stay_as_they_are():
    sparse, frame = sp.dok_array((2, 2)), pd.DataFrame({"a": [1]})
    for values in (None, sparse, frame, np.eye(2), [1.0, 2.0], [[1.0], [1.0, 2.0]], [np.nan], [{"a": 1}]):
        assert check_numeric(values, "x") is values


def test_numbers_are_copied_and_limited():
    given_ = np.arange(3.0)
    found = check_array_of_numbers(given_, "x")
    given_[:] = 7
    np.testing.assert_array_equal(found, [0.0, 1.0, 2.0])
    assert check_array_of_numbers(found[:, np.newaxis], "x").shape == (3,)
    with pytest.raises(ValueError, match="Negative values in data passed to x: -1"):
        check_array_of_numbers([-1.0], "x", low=0)
    with pytest.raises(ValueError, match="x: 3 is above 2"):
        check_array_of_numbers([3.0], "x", high=2)


def test_a_repr_that_raises_does_not_hide_the_message():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    assert shown(Odd()) == "<Odd>"
    assert len(shown("x" * 1000)) < 70
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"


def test_a_warning_points_at_the_users_line():
    inner = {"__name__": "geofloor.somewhere", "warn_caller": warn_caller}
    exec("def fit(depth):\n    return fit(depth - 1) if depth else warn_caller('Too few.', UserWarning)", inner)
    with pytest.warns(UserWarning, match="Too few") as caught:
        inner["fit"](3)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("container", [sp.csr_array, sp.csc_matrix, sp.bsr_array])
@pytest.mark.parametrize("fault", ["negative", "beyond", "pointer down", "pointer past the end", "too few pointers"])
def test_a_sparse_matrix_that_points_outside_itself_is_refused(container, fault):
    matrix = container(np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 5.0], [0.0, 0.0, 6.0]]))
    check_csr(matrix, "codes")
    if "pointer" not in fault:
        matrix.indices[1] = -1 if fault == "negative" else 4
    elif fault == "pointer down":
        matrix.indptr[1] = matrix.indptr[2] + 1
    elif fault == "too few pointers":
        matrix.indptr = matrix.indptr[:-1]
    else:
        matrix.indptr[-1] = len(matrix.indices) + 1
    with pytest.raises(ValueError, match=r"^codes is a malformed .*build codes anew"):
        check_csr(matrix, "codes")


@pytest.mark.parametrize("place", [-1, 3])
def test_coordinates_outside_the_shape_are_refused(place):
    matrix = sp.coo_array(np.eye(3))
    matrix.coords[1][1] = place
    with pytest.raises(ValueError, match=r"^codes holds coordinates of axis 1 from .*outside 0 to 2"):
        check_csr(matrix, "codes")


def test_valid_and_other_data_pass_the_check_of_sparse_matrices():
    row = sp.csr_array(np.array([0.0, 1.0]))
    for matrix in (sp.csr_array((0, 3)), sp.csr_array((3, 0)), sp.eye_array(3).todia(), row, np.ones((2, 2)), [[1]]):
        check_csr(matrix, "codes")


def test_a_dok_matrix_is_no_mapping_here():
    matrix = sp.dok_array(np.eye(2))
    assert plain_array(matrix, "codes") is matrix


def test_a_warning_of_a_context_manager_points_at_the_users_line():
    inner = {"__name__": "geofloor.somewhere", "warn_caller": warn_caller, "manager": contextlib.contextmanager}
    exec("@manager\ndef lock():\n    yield warn_caller('Waiting.', UserWarning)", inner)
    with pytest.warns(UserWarning, match="Waiting") as caught, inner["lock"]():
        pass
    assert caught[0].filename == __file__


def test_tensors_without_values_are_refused():
    with pytest.raises(ValueError, match="values is a tensor on torch's meta device"):
        plain_array(torch.ones(2, device="meta"), "values")
    with pytest.raises(ValueError, match="width=.* must be a finite number"):
        check_number("width", torch.ones((), device="meta"))


def test_paths_are_text_or_path_like_and_name_a_file():
    assert check_path("path", "a/b") == check_path("path", Path("a/b")) == Path("a/b")
    for value in (None, 3, b"a", np.array("a")):
        with pytest.raises((TypeError, ValueError), match="path="):
            check_path("path", value)
    with pytest.raises(ValueError, match="path=.* can't be written or read"):
        check_path("path", "a\0b")


def test_arrays_without_dimensions_are_no_iterables():
    assert check_iterable("texts", ["a"], "give a list") == ["a"]
    for value in (np.array("a"), np.ma.masked, 3, None):
        with pytest.raises(TypeError, match="texts=.*; give a list"):
            check_iterable("texts", value, "give a list")
