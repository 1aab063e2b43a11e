import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import AffineCalibrator, DistilledStudent, FloorPredictor
from geofloor.displays import DistillationDisplay, DistillationSummaryDisplay, DistilledFloorsDisplay

STUDENTS = ((8, 0), (16, 0), (16, 1), (32, 0))
FLOORS = (0.8, 0.5, 0.49, 0.1)
STEPS = np.array([0, 50, 100])
WIDTHS = np.array([8, 16, 32])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def floors():
    rows = [(*student, floor, 0.01 * floor) for student, floor in zip(STUDENTS, FLOORS, strict=True)]
    return pd.DataFrame(rows, columns=["width", "seed", "floor", "floor_error"])


@pytest.fixture
def history(floors):
    curves = floors[["width", "seed", "floor"]].merge(pd.DataFrame({"step": STEPS}), how="cross")
    curves["eval_kl"] = curves["floor"] + 2.0 * np.exp(-curves["step"] / 20)
    return curves.drop(columns="floor").sample(frac=1.0, random_state=0, ignore_index=True)


@pytest.fixture
def predictor():
    return FloorPredictor(alpha=0.9).fit(1 / np.arange(1.0, 151))


@pytest.fixture(scope="module")
def students():
    """Two seeds of one width and one of another, distilled from a tiny teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        teacher = GPTNeoXForCausalLM(config).eval()
    tokens = np.random.default_rng(0).integers(32, size=(20, 6))
    settings = {"n_steps": 4, "warmup_steps": 1, "batch_size": 4, "eval_every": 2, "device": "cpu"}
    with pytest.warns(ConvergenceWarning, match="n_steps=4 are too few"):
        return [
            DistilledStudent(teacher, width, random_state=seed, **settings).fit(tokens)
            for width, seed in ((16, 3), (8, None), (16, 0))
        ]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_curves_and_floors_are_those_given(history, floors):
    display = DistillationDisplay.from_history(history, floors=floors)
    assert list(display.lines_) == list(display.floor_lines_) == list(STUDENTS)
    for student, floor in zip(STUDENTS, FLOORS, strict=True):
        np.testing.assert_allclose(
            display.lines_[student].get_xydata(), np.column_stack([STEPS, floor + 2.0 * np.exp(-STEPS / 20)])
        )
        line = display.floor_lines_[student]
        assert set(line.get_ydata()) == {floor}
        assert line.get_color() == display.lines_[student].get_color()
    assert display.difference_ is None
    assert texts(display.ax_.get_legend()) == [
        "d = 8: 0.8",
        "d = 16, seed 0: 0.5",
        "d = 16, seed 1: 0.49",
        "d = 32: 0.1",
        "floor",
    ]
    of_width = {width: to_hex(display.lines_[width, 0].get_color()) for width in WIDTHS.tolist()}
    assert len(set(of_width.values())) == 3
    assert to_hex(display.lines_[16, 1].get_color()) == of_width[16]
    assert display.lines_[16, 1].get_linestyle() != display.lines_[16, 0].get_linestyle()


def test_seeds_of_one_width_are_compared(history, floors):
    floors = pd.concat([floors, pd.DataFrame({"width": [16], "seed": [2], "floor": [0.52]})])
    history = pd.concat([history, history[history["seed"] == 1].assign(seed=2)])
    chosen = floors["width"] == 16
    display = DistillationDisplay.from_history(history[history["width"] == 16], floors=floors[chosen])
    assert display.difference_ == pytest.approx(4.0)
    legend = display.ax_.get_legend()
    assert legend.get_title().get_text() == "floors differ by 0.02 (4.0%)"
    assert texts(legend) == ["seed 0: 0.5", "seed 1: 0.49", "seed 2: 0.52", "floor"]
    assert len({line.get_color() for line in display.lines_.values()}) == 3


def test_curves_without_seeds_and_floors(history):
    display = DistillationDisplay.from_history(history[history["seed"] == 0].drop(columns="seed"), scale="log")
    assert list(display.lines_) == [(8, 0), (16, 0), (32, 0)]
    assert display.floor_lines_ == {}
    assert texts(display.ax_.get_legend()) == ["d = 8", "d = 16", "d = 32"]
    assert display.ax_.get_yscale() == "log"
    display.figure_.canvas.draw()
    assert "0.2" in [label.get_text() for label in display.ax_.get_yticklabels()]


def test_students_are_drawn_as_they_were_trained(students):
    display = DistillationDisplay.from_students(students)
    assert list(display.lines_) == [(8, 0), (16, 0), (16, 3)]
    for student, key in zip(students, ((16, 3), (8, 0), (16, 0)), strict=True):
        expected = [[row["step"], row["eval_kl"]] for row in student.history_]
        np.testing.assert_array_equal(display.lines_[key].get_xydata(), expected)
        assert display.floor_lines_[key].get_ydata()[0] == student.floor_
    training = DistillationDisplay.from_students(students, loss="train_kl")
    assert training.lines_[16, 0].get_xdata().tolist() == [2, 4]  # none before the first step
    assert training.ax_.get_ylabel() == "training KL (nats per token)"

    over_width = DistilledFloorsDisplay.from_students(students)
    assert over_width.line_.get_ydata()[0] == students[1].floor_
    summary = DistillationSummaryDisplay.from_students(students)
    assert list(summary.seeds_.lines_) == [(16, 0), (16, 3)]


def test_floors_are_means_over_seeds_and_every_student_is_a_point(floors):
    display = DistilledFloorsDisplay.from_floors(floors, critical_widths=30.0)
    np.testing.assert_allclose(display.line_.get_xydata(), np.column_stack([WIDTHS, [0.8, 0.495, 0.1]]))
    points, _, (bars,) = display.errorbars_
    np.testing.assert_array_equal(points.get_xydata(), floors[["width", "floor"]])
    ends = np.array(bars.get_segments())[:, :, 1]
    np.testing.assert_allclose(np.diff(ends, axis=1)[:, 0], 2 * floors["floor_error"])
    assert display.predicted_lines_ == {}
    assert display.critical_lines_[0].get_xdata()[0] == 30.0
    assert display.ax_.get_ylabel() == "floor (nats per token)"
    assert display.ax_.get_ylim()[0] == 0


def test_each_curve_is_normalised_by_its_own_narrowest_width(floors, predictor):
    display = DistilledFloorsDisplay.from_floors(floors, predictor=predictor, normalized=True)
    predicted = predictor.predict(WIDTHS)
    np.testing.assert_allclose(
        display.predicted_lines_["predicted"].get_xydata(), np.column_stack([WIDTHS, predicted / predicted[0]])
    )
    np.testing.assert_allclose(display.line_.get_ydata(), [1.0, 0.495 / 0.8, 0.1 / 0.8])
    np.testing.assert_allclose(display.errorbars_[0].get_ydata(), floors["floor"] / 0.8)
    assert texts(display.ax_.get_legend()) == [f"predicted, d* = {predictor.critical_width_:,.0f}", "observed"]
    assert display.ax_.get_ylabel() == "floor (relative to d = 8)"


def test_calibrated_predictions_are_drawn_in_nats_by_label(floors, predictor):
    seed_0 = floors[floors["seed"] == 0].drop(columns=["seed", "floor_error"])
    calibrated = make_pipeline(FrozenEstimator(predictor), AffineCalibrator()).fit(WIDTHS, seed_0["floor"])
    display = DistilledFloorsDisplay.from_floors(
        seed_0, predictor={"a": calibrated, "b": predictor}, critical_widths={"a": 20.0}, scale="log"
    )
    np.testing.assert_array_equal(display.predicted_lines_["a"].get_ydata(), calibrated.predict(WIDTHS))
    np.testing.assert_array_equal(display.predicted_lines_["b"].get_ydata(), predictor.predict(WIDTHS))
    assert [line.get_xdata()[0] for line in display.critical_lines_] == [20.0]
    assert display.ax_.get_yscale() == "log"


def test_the_summary_is_made_of_the_others(history, floors, predictor):
    display = DistillationSummaryDisplay.from_history(history, floors, predictor=predictor, scale="log")
    parts = [display.curves_, display.floors_, display.normalized_, display.seeds_]
    assert [part.ax_ for part in parts] == display.axes_.ravel().tolist()
    alone = DistilledFloorsDisplay.from_floors(floors, predictor=predictor, normalized=True)
    np.testing.assert_array_equal(
        display.normalized_.predicted_lines_["predicted"].get_ydata(), alone.predicted_lines_["predicted"].get_ydata()
    )
    assert list(display.curves_.lines_) == list(STUDENTS)
    assert list(display.seeds_.lines_) == [(16, 0), (16, 1)]
    assert display.seeds_.difference_ == pytest.approx(2.0)
    assert display.floors_.critical_lines_[0].get_xdata()[0] == predictor.critical_width_
    assert [ax.get_yscale() for ax in display.axes_.flat] == ["log", "linear", "linear", "log"]


def test_the_summary_without_seeds_or_prediction(history, floors):
    seed_0 = floors[floors["seed"] == 0]
    display = DistillationSummaryDisplay.from_history(history, seed_0)
    assert display.seeds_ is None
    assert not display.axes_[1, 1].axison
    assert display.normalized_.predicted_lines_ == {}


def test_plot_draws_where_it_is_told_and_returns_the_display(history, floors):
    for display in (
        DistillationDisplay(history=history, floors=floors, unit="u"),
        DistilledFloorsDisplay(floors=floors, unit="u"),
    ):
        _, ax = plt.subplots()
        assert display.plot(ax=ax) is display
        assert (display.ax_, display.figure_) == (ax, ax.figure)
        assert display.plot().ax_ is not ax
        assert display.ax_.get_ylabel().endswith("(u)")
    figure = plt.figure(layout="constrained")
    summary = DistillationSummaryDisplay(history=history, floors=floors)
    assert summary.plot(figure) is summary
    assert summary.figure_ is figure


def test_styles_reach_the_curves(history):
    display = DistillationDisplay.from_history(history, line_kwargs={"color": "red", "linewidth": 3.0})
    assert {(line.get_color(), line.get_linewidth()) for line in display.lines_.values()} == {("red", 3.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda history, floors: (history.head(0), floors), "history has no rows"),
        (lambda history, floors: (history.drop(columns="eval_kl"), floors), "history lacks the columns"),
        (lambda history, floors: (history.assign(eval_kl=np.nan), floors), "are not finite"),
        (lambda history, floors: (history.drop(columns="seed"), floors), "history has several rows"),
        (lambda history, floors: (history, floors.head(0)), "floors has no rows"),
        (lambda history, floors: (history, floors.drop(columns="floor")), "floors lacks the columns"),
        (lambda history, floors: (history, floors.drop(columns="seed")), "floors has several rows for width=16"),
        (lambda history, floors: (history, floors.assign(width=64 + floors["width"])), "width=72, seed=0"),
    ],
)
def test_tables_that_are_not_whole_are_refused(history, floors, change, message):
    for draw in (DistillationSummaryDisplay.from_history, DistillationDisplay.from_history):
        history_, floors_ = change(history, floors)
        arguments = (history_, floors_) if draw is DistillationSummaryDisplay.from_history else (history_,)
        keywords = {} if len(arguments) > 1 else {"floors": floors_}
        with pytest.raises(ValueError, match=message):
            draw(*arguments, **keywords)


def test_floors_that_do_not_fit_together_are_refused(floors, predictor):
    with pytest.raises(ValueError, match="observed floor of the narrowest width, which is 0"):
        DistilledFloorsDisplay.from_floors(floors.assign(floor=0.0), normalized=True)
    with pytest.raises(ValueError, match="none floor of the narrowest width"):
        DistilledFloorsDisplay(floors=floors, predicted={"none": [0.0, 0.0, 0.0]}, normalized=True).plot()
    with pytest.raises(ValueError, match=r"predicted\['a'\] has the shape \(2,\), but there are 3 widths"):
        DistilledFloorsDisplay(floors=floors, predicted={"a": [1.0, 2.0]}).plot()
    with pytest.raises(ValueError, match="critical_widths"):
        DistilledFloorsDisplay.from_floors(floors, predictor=predictor, critical_widths={"b": 3.0})


def test_unknown_scales_are_refused(history, floors):
    for draw in (
        lambda: DistillationDisplay.from_history(history, scale="symlog"),
        lambda: DistilledFloorsDisplay.from_floors(floors, scale="symlog"),
        lambda: DistillationSummaryDisplay.from_history(history, floors, scale="symlog"),
    ):
        with pytest.raises(ValueError, match="scale='symlog' is unknown"):
            draw()


def test_students_that_cannot_be_drawn_are_refused(students):
    for display in (DistillationDisplay, DistilledFloorsDisplay, DistillationSummaryDisplay):
        with pytest.raises(ValueError, match="students is empty"):
            display.from_students([])
        with pytest.raises(ValueError, match="two of width=16 and random_state=3"):
            display.from_students([*students, students[0]])
    with pytest.raises(ValueError, match="loss='loss' is not in the history"):
        DistillationDisplay.from_students(students, loss="loss")
    with pytest.raises(NotFittedError):
        DistillationDisplay.from_students([DistilledStudent(students[0].teacher, 8)])
