import pandas as pd
import pytest
from display_calls import POINTS

from geofloor import displays
from geofloor.displays import (
    AccuracyDisplay,
    CollapseDisplay,
    ErrorDisplay,
    FloorGridDisplay,
    PredictionDisplay,
    SparsityDisplay,
)


def test_no_predictor_is_refused():
    with pytest.raises(ValueError, match="errors is empty; give at least one"):
        displays.ErrorDisplay(errors={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted is empty; give at least one"):
        displays.PredictionDisplay(measured=[0.1], predicted={}, alphas=[0.9]).plot()
    with pytest.raises(ValueError, match="predicted=.* must name at least one column"):
        displays.ErrorDisplay.from_summary(POINTS, predicted=[])


def test_a_missing_value_in_a_column_is_counted():
    holed = POINTS.convert_dtypes()
    holed.loc[1, "floor"] = pd.NA
    with pytest.raises(ValueError, match=r"summary\['floor'\]: 1 of 4 values are not finite"):
        displays.FloorGridDisplay.from_summary(holed)
    with pytest.raises(ValueError, match=r"summary\['floor'\]=.* holds text"):
        displays.FloorGridDisplay.from_summary(POINTS.astype({"floor": str}))


of_summaries = pytest.mark.parametrize(
    "draw",
    [
        FloorGridDisplay.from_summary,
        SparsityDisplay.from_summary,
        PredictionDisplay.from_summary,
        ErrorDisplay.from_summary,
        AccuracyDisplay.from_summary,
        CollapseDisplay.from_summary,
    ],
    ids=lambda draw: draw.__self__.__name__,
)


@of_summaries
def test_a_sweep_without_teachers_is_drawn_as_one_of_no_teacher(summary, draw):
    plain = summary[summary["teacher_width"] == 5].drop(columns="teacher_width")
    drawn, expected = draw(plain), draw(plain.assign(teacher_width=0))
    pd.testing.assert_frame_equal(drawn.frame(), expected.frame())


@of_summaries
def test_summaries_that_cannot_be_drawn_are_refused(summary, draw):
    with pytest.raises(ValueError, match=r"lacks the columns \['alpha', 'floor'\]; needed are \['n_features', 'alpha'"):
        draw(summary.drop(columns=["floor", "alpha"]))
    with pytest.raises(ValueError, match="no rows"):
        draw(summary.iloc[:0])
    with pytest.raises(ValueError, match="several rows for n_features=10, alpha=0.8, teacher_width=3, width=1"):
        draw(pd.concat([summary, summary]))
    with pytest.raises(ValueError, match="'floor']: 1 of 48 values are not finite"):
        draw(summary.assign(floor=summary["floor"].where(summary.index > 0)))
