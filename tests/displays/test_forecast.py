import numpy as np
import pytest

from geofloor import FloorPredictor, LossForecaster
from geofloor.displays import ForecastDisplay
from geofloor.forecasting import Calibrated


def test_forecasts_have_their_interval_runs_and_target():
    floor = FloorPredictor(alpha=0.99).fit(np.exp(-np.arange(3000) / 600))
    forecaster = LossForecaster(Calibrated(floor)).fit([8, 64], [1.0, 0.4])
    widths = np.array([64, 8, 16])
    display = ForecastDisplay.from_forecaster(forecaster, widths, target=0.5, level=0.8)
    losses, interval = forecaster.predict([8, 16, 64], return_interval=True, level=0.8)
    np.testing.assert_array_equal(display.line_.get_xydata(), np.column_stack([[8, 16, 64], losses]))
    outline = display.band_.get_paths()[0].vertices
    for width, ends in zip([8, 16, 64], interval, strict=True):
        assert set(ends) <= set(outline[outline[:, 0] == width, 1])
    np.testing.assert_array_equal(display.observed_points_.get_offsets(), [[8, 1.0], [64, 0.4]])
    assert set(display.target_line_.get_ydata()) == {0.5}
    assert "80% interval" in [text.get_text() for text in display.ax_.get_legend().get_texts()]
    with pytest.raises(ValueError, match=r"shapes \(0,\)"):
        ForecastDisplay(widths=[], losses=[], interval=[]).plot()
    assert display.least_band_ is None
    narrow = ForecastDisplay(widths=[2, 1], losses=[1, 2], interval=[[1, 2], [2, 3]], least=[0.5, 1.5]).plot()
    assert narrow.least_band_.get_datalim(narrow.ax_.transData).extents.tolist() == [1, 0, 2, 1.5]
    with pytest.raises(ValueError, match=r"least has 1 values for 2 widths"):
        ForecastDisplay(widths=[2, 1], losses=[1, 2], interval=[[1, 2], [2, 3]], least=[0.5]).plot()


def test_frame_holds_forecast_bound_runs_and_target():
    display = ForecastDisplay(
        widths=[2, 1],
        losses=[1, 2],
        interval=[[0.9, 1.1], [1.8, 2.2]],
        observed_widths=[3],
        observed=[0.5],
        least=[0.5, 1.5],
        target=0.7,
    ).plot()
    frame = display.frame()
    assert frame["source"].tolist() == ["forecast", "forecast", "observed", "target"]
    np.testing.assert_array_equal(frame.loc[:1, ["width", "loss"]], display.line_.get_xydata())
    assert frame.loc[:1, ["low", "high", "least"]].to_numpy().tolist() == [[1.8, 2.2, 1.5], [0.9, 1.1, 0.5]]
    np.testing.assert_array_equal(frame.loc[[2], ["width", "loss"]], display.observed_points_.get_offsets())
    assert frame["loss"][3] == display.target_line_.get_ydata()[0]
    assert display.plot(scale="log").ax_.get_yscale() == "log"
    with pytest.raises(ValueError, match="scatter_kwargs is for the runs"):
        ForecastDisplay(widths=[1], losses=[1], interval=[[0, 2]]).plot(scatter_kwargs={})


def test_a_width_without_a_finite_forecast_is_named():
    forecaster = LossForecaster("power").fit([32, 96], [0.38, 0.056])
    with pytest.raises(ValueError, match="widths holds 0, where the forecast is infinite"):
        ForecastDisplay.from_forecaster(forecaster, [0, 16])
