import numpy as np
import pandas as pd
import pytest

from geofloor.displays import ProbeHeatmapDisplay


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "concept": ["legal_text"] * 3 + ["code"] * 3,
            "model": ["teacher", "d = 8", "d = 4"] * 2,
            "accuracy": [0.9, 0.95, 0.6, 1.0, 1.0, 0.45],
            "p_value": [np.nan, 0.2, 0.01, np.nan, 1.0, 0.04],
        }
    )


def test_heatmap_writes_accuracies_changes_and_stars_in_the_order_of_the_table(table):
    display = ProbeHeatmapDisplay.from_table(table)
    assert [[text.get_text() for text in row] for row in display.texts_] == [
        ["90.0", "95.0\n+5.0", "60.0\n−30.0*"],
        ["100.0", "100.0\n+0.0", "45.0\n−55.0*"],
    ]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["legal text", "code"]
    np.testing.assert_allclose(display.image_.get_array(), [[90, 95, 60], [100, 100, 45]])
    assert display.image_.get_clim() == pytest.approx((45, 100))


def test_heatmap_can_show_changes_and_leaves_gaps(table):
    display = ProbeHeatmapDisplay.from_table(table.drop(index=1), colors="change", significance=0.02)
    assert display.texts_[0, 2].get_text() == "–"
    shown = display.image_.get_array()
    assert shown.mask.tolist() == [[True, False, True], [True, False, False]]
    np.testing.assert_allclose(shown.compressed(), [-30, -55, 0])
    assert display.image_.get_clim() == pytest.approx((-55, 55))
    assert display.texts_[1, 1].get_text() == "45.0\n−55.0"


def test_heatmap_without_a_reference_writes_accuracies_alone(table):
    display = ProbeHeatmapDisplay.from_table(table, reference=None)
    assert display.texts_[1, 2].get_text() == "45.0"
    with pytest.raises(ValueError, match="colors='change' needs changes"):
        ProbeHeatmapDisplay.from_table(table, reference=None, colors="change")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.drop(columns="accuracy"), {}, "lacks the columns"),
        (lambda table: table.head(0), {}, "no rows"),
        (lambda table: table.assign(accuracy=90.0), {}, "not percent"),
        (lambda table: pd.concat([table, table]), {}, "twice"),
        (lambda table: table, {"reference": "d = 2"}, "reference='d = 2'"),
        (lambda table: table.drop(index=0), {}, "no accuracy of the reference"),
        (lambda table: table, {"colors": "blue"}, "colors='blue'"),
    ],
)
def test_heatmap_refuses_wrong_tables_and_options(table, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        ProbeHeatmapDisplay.from_table(change(table), **arguments)


def test_frame_holds_every_cell(table):
    display = ProbeHeatmapDisplay.from_table(table.drop(index=1))
    frame = display.frame()
    assert frame["concept"].tolist() == ["legal_text"] * 3 + ["code"] * 3
    np.testing.assert_array_equal(frame["accuracy"], display.image_.get_array().filled(np.nan).ravel())
    changes = ProbeHeatmapDisplay.from_table(table.drop(index=1), colors="change").image_.get_array()
    np.testing.assert_array_equal(frame["change"], changes.filled(np.nan).ravel())
    starred = ["*" in text.get_text() for text in display.texts_.flat]
    assert frame["significant"].tolist() == starred
    assert any(starred)


def test_heatmap_refuses_a_significance_without_p_values(table):
    with pytest.raises(ValueError, match=r"significance=0.1 needs p_values"):
        ProbeHeatmapDisplay.from_table(table.drop(columns="p_value"), significance=0.1)
    with pytest.raises(ValueError, match=r"significance=0.1 needs p_values"):
        ProbeHeatmapDisplay.from_table(table, reference=None, significance=0.1)
