import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from display_calls import REPORT

from geofloor.displays import DictionaryDisplay

REPORTS = {
    "a": REPORT,
    "b": dataclasses.replace(REPORT, kl_div_with_sae=0.1, kl_div_score=0.95, freq_over_1_percent=0.4, l0=64.0),
}


def test_each_measure_is_drawn_once_per_dictionary():
    display = DictionaryDisplay.from_reports(REPORTS)
    for metric, points in display.points_.items():
        expected = [[getattr(report, metric), row] for row, report in enumerate(REPORTS.values())]
        np.testing.assert_array_equal(points.get_xydata(), expected)
    labels = [label.get_text() for label in display.axes_[0].get_yticklabels()]
    assert labels == ["a\nL0 = 32", "b\nL0 = 64"]
    assert display.axes_[0].get_ylim() == (1.5, -0.5)  # from the top down
    assert display.axes_[0].get_xscale() == "log"


def test_bars_are_one_standard_error_to_either_side():
    display = DictionaryDisplay.from_reports(REPORTS)
    bars = display.errors_.lines[2][0].get_segments()
    for report, bar in zip(REPORTS.values(), bars, strict=True):
        np.testing.assert_allclose(
            bar[:, 0],
            report.kl_div_with_sae + np.array([-1, 1]) * report.kl_div_with_sae_error,
        )


def test_a_single_report_needs_no_name():
    display = DictionaryDisplay.from_reports(REPORT)
    assert [label.get_text() for label in display.axes_[0].get_yticklabels()] == ["L0 = 32"]
    assert display.points_["explained_variance"].get_xdata().tolist() == [REPORT.explained_variance]


def test_losses_of_zero_and_missing_measures_are_drawn_on_a_linear_scale():
    perfect = dataclasses.replace(
        REPORT, kl_div_with_sae=-1e-9, kl_div_with_sae_error=np.nan, kl_div_score=np.nan, explained_variance=np.nan
    )
    display = DictionaryDisplay.from_reports({"perfect": perfect, "other": REPORT})
    assert display.axes_[0].get_xscale() == "linear"
    assert display.axes_[0].get_xlim()[0] <= 0.0
    assert np.isnan(display.points_["kl_div_score"].get_xdata()[0])


def test_scores_below_zero_are_in_view():
    worse = dataclasses.replace(REPORT, kl_div_score_above_mean=-0.7)
    assert DictionaryDisplay.from_reports(worse).axes_[1].get_xlim()[0] < -0.7


def test_frame_holds_the_points():
    display = DictionaryDisplay.from_reports(REPORTS)
    frame = display.frame()
    for metric, points in display.points_.items():
        rows = frame[frame["metric"] == metric]
        assert rows["dictionary"].tolist() == ["a", "b"]
        np.testing.assert_array_equal(rows["value"], points.get_xdata())
    assert frame["standard_error"].dropna().tolist() == [REPORT.kl_div_with_sae_error] * 2


def test_reports_are_drawn_in_a_given_figure():
    figure = plt.figure(layout="constrained")
    assert DictionaryDisplay.from_reports(REPORTS, figure=figure).figure_ is figure
    assert len(figure.axes) == 3


@pytest.mark.parametrize(
    ("reports", "error", "message"),
    [
        ({}, ValueError, "reports is empty"),
        (None, TypeError, "reports holds None, a NoneType; give a DictionaryReport"),
        ({"a": REPORT, "b": 3}, TypeError, "reports holds 3, a int"),
        ([REPORT], TypeError, "reports holds .* a list"),
        ({1: REPORT}, TypeError, "reports: name=1 is a int"),
        (type(REPORT), TypeError, "reports holds"),
    ],
)
def test_other_objects_are_refused(reports, error, message):
    with pytest.raises(error, match=message):
        DictionaryDisplay.from_reports(reports)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.head(0), "table has no rows"),
        (lambda table: table.drop(columns="l0"), "table lacks the columns"),
        (lambda table: table.assign(frac_alive=np.nan), r"table\['frac_alive'\]: 2 of 2 values are not finite"),
        (lambda table: table.assign(dictionary="a"), "table has dictionary='a'; give each row a name of its own"),
        (lambda table: table.assign(dictionary=[1, 2]), "table has dictionary=1"),
    ],
)
def test_incomplete_tables_are_refused(change, message):
    table = pd.DataFrame(list(REPORTS.values())).assign(dictionary=list(REPORTS))
    DictionaryDisplay(table=table).plot()
    for ask in (DictionaryDisplay.plot, DictionaryDisplay.frame):
        with pytest.raises(ValueError, match=message):
            ask(DictionaryDisplay(table=change(table)))
