import numpy as np
import pytest
from display_data import PAPER_FLOORS

from geofloor import FeatureStatistics, FloorPredictor
from geofloor.displays import SpectrumDisplay
from geofloor.features import PowerLawTail


@pytest.fixture
def predictor():
    return FloorPredictor(alpha=0.99).fit(1 / np.arange(1, 1001) ** 2)


def test_spectrum_display_draws_positive_importances_over_rank():
    display = SpectrumDisplay(importances=[0.1, 0.0, 0.4, 0.2]).plot()
    np.testing.assert_array_equal(display.line_.get_xydata(), [[1, 0.4], [2, 0.2], [3, 0.1]])
    assert display.tail_line_ is None


def test_spectrum_display_thins_long_spectra_without_moving_points():
    importances = 1 / np.arange(1.0, 50_001)
    display = SpectrumDisplay(importances=importances).plot()
    ranks, drawn = display.line_.get_xydata().T
    assert len(ranks) <= 2000
    assert ranks[[0, -1]].tolist() == [1, 50_000]
    np.testing.assert_array_equal(drawn, importances[ranks.astype(int) - 1])


def test_the_tail_of_an_exact_power_law_lies_on_the_spectrum():
    exponent = 3.0
    ranks = np.arange(1, 1002)
    importances = ranks ** (-1 / (exponent - 1))
    tail = PowerLawTail(exponent, (2.8, 3.2), importances[1000], 1001)
    display = SpectrumDisplay(importances=importances, tail=tail).plot()
    drawn = np.interp(np.log(ranks), *np.log(display.tail_line_.get_xydata().T))
    np.testing.assert_allclose(drawn, np.log(importances), atol=1e-12)


def test_spectrum_boundaries_are_the_kept_features(predictor):
    display = SpectrumDisplay.from_importances(predictor.importances_, widths=[4, 16, 64], alpha=0.99)
    drawn = [line.get_xdata()[0] for line in display.kept_lines_]
    assert drawn == predictor.kept_features([4, 16]).tolist()  # width 64 drops nothing


def test_spectrum_from_statistics_shows_their_tail_and_capacity(rng):
    codes = rng.exponential(size=(400, 300)) ** 3 * (rng.random((400, 300)) < 0.05)
    statistics = FeatureStatistics(capacity="minimax_nonnegative").fit(codes)
    display = SpectrumDisplay.from_statistics(statistics, widths=[10])
    assert display.kept == {10: int(10 * statistics.capacity_)}
    np.testing.assert_array_equal(display.line_.get_ydata(), statistics.table_[:, 0])
    assert display.tail_line_.get_ydata()[1] == pytest.approx(statistics.tail_start_)
    assert f"{statistics.tail_exponent_:.2f}" in display.tail_line_.get_label()


def test_spectrum_refuses_widths_without_sparsity_and_all_zeros():
    with pytest.raises(ValueError, match="alpha=None"):
        SpectrumDisplay.from_importances(PAPER_FLOORS, widths=[4])
    with pytest.raises(ValueError, match="above zero"):
        SpectrumDisplay(importances=np.zeros(3)).plot()


def test_spectrum_can_be_drawn_on_linear_axes():
    importances = 1 / np.arange(1, 401)
    display = SpectrumDisplay.from_importances(importances, scale="linear")
    assert (display.ax_.get_xscale(), display.ax_.get_yscale()) == ("linear", "linear")
    np.testing.assert_array_equal(display.line_.get_ydata(), importances)
    ranks, law = display.tail_line_.get_xydata().T
    np.testing.assert_allclose(law, display.tail.start * (ranks / ranks[-1]) ** (-1 / (display.tail.exponent - 1)))
    assert len(ranks) > 100  # a curve, where logarithmic axes need two points
    with pytest.raises(ValueError, match="scale='sqrt'"):
        display.plot(scale="sqrt")


def test_frame_holds_spectrum_law_and_kept_features():
    importances = 1 / np.arange(1, 401)
    display = SpectrumDisplay.from_importances(importances, widths=[4, 1000], alpha=0.9)
    frame = display.frame()
    for source, line in (("features", display.line_), ("power law", display.tail_line_)):
        points = frame.loc[frame["source"] == source, ["rank", "importance"]]
        np.testing.assert_array_equal(points, line.get_xydata())
    kept = frame[frame["source"] == "kept"]  # width 1000 drops nothing
    assert kept["width"].tolist() == [4]
    assert kept["rank"].tolist() == [display.kept_lines_[0].get_xdata()[0]]


@pytest.mark.parametrize("unused", [{"alpha": 0.9}, {"capacity": "minimax"}])
def test_spectrum_refuses_sparsity_and_capacity_without_widths(unused):
    with pytest.raises(ValueError, match=f"{next(iter(unused))}=.* counts only with widths"):
        SpectrumDisplay.from_importances(PAPER_FLOORS, **unused)
