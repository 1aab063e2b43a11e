import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from small_sweeps import QUICK, SMALL

from geofloor._training.devices import one_thread
from geofloor._training.schedules import warmup_cosine
from geofloor.toy import SparseFeatures, _runner, summarize_sweep, toy_sweep


def one_at_a_time(n, alpha, width, seed):
    """A plain PyTorch toy model: all samples drawn, autograd, torch's Adam; the schedule is the engine's."""
    generator = torch.Generator().manual_seed(seed)
    importances = 1 / torch.arange(1, n + 1)
    weight = torch.nn.init.xavier_normal_(torch.empty(width, n), generator=generator).requires_grad_()
    bias = torch.zeros(n, requires_grad=True)
    for _ in range(2):
        optimizer = torch.optim.Adam([weight, bias], lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, n_steps=1500))
        for _ in range(1500):
            shape = (256, n)
            x = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 1 - alpha)
            loss = ((torch.relu(x @ weight.T @ weight + bias) - x) ** 2 * importances).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        X = torch.from_numpy(SparseFeatures(n, alpha).sample(200_000, random_state=seed))
        losses = ((torch.relu(X @ weight.T @ weight + bias) - X) ** 2 * importances).sum(dim=1).double()
    return losses.mean().item(), losses.std().item() / np.sqrt(len(losses))


@pytest.mark.parametrize("n_configurations", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_floors_are_those_of_models_trained_one_at_a_time(n_configurations):
    rng = np.random.default_rng(0)
    differences, variances = [], []
    for seed in range(n_configurations):
        n, alpha = int(rng.choice([10, 20, 40])), float(rng.choice([0.8, 0.9, 0.95, 0.99]))
        width = int(rng.integers(1, n // 3 + 1))
        sweep = toy_sweep(n, [width], alpha, teacher_widths=None, n_seeds=8, n_eval_samples=65_536, random_state=seed)
        with one_thread():
            reference, error = one_at_a_time(n, alpha, width, seed)
        floor = sweep.floor.mean()
        differences.append(reference / floor - 1)
        spread = sweep.floor.var() * (1 + 1 / 8)  # of one model, and of the mean of eight
        variances.append((spread + error**2 + sweep.standard_error.mean() ** 2) / floor**2)
    # Eight seeds tell a configuration's spread poorly, and all of them may end in one minimum: the spread is pooled.
    pooled = np.maximum(variances, np.mean(variances))
    z = np.array(differences) / np.sqrt(pooled)
    assert (np.abs(z) > 2).sum() <= n_configurations // 8  # 1 of 8, 2 of 20
    assert abs(np.mean(differences)) <= 2 * np.sqrt(np.mean(variances) / len(differences))


@pytest.mark.parametrize(
    ("n", "alpha", "width", "independent"),
    [(40, 0.9, 3, 0.06045), (40, 0.9, 6, 0.04118), (40, 0.9, 9, 0.02930), (20, 0.8, 5, 0.05683)],
)
def test_floors_are_those_measured_elsewhere(n, alpha, width, independent):
    # Means of five seeds of 10,000 steps of 1,024 samples, trained independently of this library.
    sweep = toy_sweep(n, [width], alpha, teacher_widths=None, n_seeds=10)
    assert sweep.floor.mean() == pytest.approx(independent, rel=0.02)


def test_sweep_has_a_row_for_every_point_and_seed(sweep):
    points = [(n, a, t, d) for n in (6, 10) for a in (0.8, 0.95) for t in (2, 4) for d in range(1, t + 1)]
    assert sweep.groupby(["n_features", "alpha", "teacher_width", "width"]).size().to_dict() == dict.fromkeys(points, 3)
    # With the data as the target a teacher only bounds the width.
    twice = sweep[sweep.width <= 2].groupby(["n_features", "alpha", "width", "seed"]).floor
    assert (twice.min() == twice.max()).all()
    zero = [np.sum((1 - a) / 3 / np.arange(1, n + 1)) for n, a in zip(sweep.n_features, sweep.alpha, strict=True)]
    np.testing.assert_allclose(sweep.total, zero)
    assert (sweep.floor < sweep.total).all()


def test_numbers_do_not_depend_on_the_rest_of_the_grid(sweep):
    alone = toy_sweep(10, [3], 0.95, **{**SMALL, "teacher_widths": [4], "n_seeds": 2})
    chosen = sweep.query("n_features == 10 and alpha == 0.95 and teacher_width == 4 and width == 3 and seed < 2")
    assert_frame_equal(alone, chosen.reset_index(drop=True), check_exact=True)


def test_settings_may_be_numbers_of_numpy(sweep, tmp_path):
    counts = {name: np.int64(value) for name, value in {**QUICK, "n_seeds": 3, "batch_size": 128}.items()}
    arguments = {"n_features": np.array([6, 10]), "alphas": np.array([0.8, 0.95]), "checkpoint_dir": tmp_path}
    again = toy_sweep(**{**SMALL, **counts}, **arguments, learning_rate=np.float64(1e-2))
    assert_frame_equal(again, sweep, check_exact=True)
    toy_sweep(6, [2], 0.9, **{**SMALL, **counts}, tol=np.float32(5e-3), checkpoint_dir=tmp_path)


def test_a_checkpoint_dir_that_cannot_be_written_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(_runner, "_run_part", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="checkpoint_dir='.*' can't be written"):
            toy_sweep(6, [2], 0.9, **SMALL, checkpoint_dir=path)


def test_distilled_students_have_teachers_of_their_own():
    sweep = toy_sweep(8, alphas=0.9, teacher_widths=[2, 4], n_seeds=3, target="teacher", n_steps=600, max_rounds=5)
    summary = summarize_sweep(sweep).set_index(["teacher_width", "width"])
    # A student learns a smaller teacher's few features well, and a larger teacher's many badly.
    assert summary.floor[2, 2] < summary.floor[4, 2] < summary.floor[4, 1]
    assert (summary.floor < summary.data_floor).all()
    own = toy_sweep(8, [2], 0.9, teacher_widths=None, n_seeds=3, n_steps=600, max_rounds=5)
    assert own.floor.mean() <= 1.05 * summary.data_floor[2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphas": (0.9, 1.0)}, "alphas=1.0 must be"),
        ({"alphas": -0.1}, "alphas=-0.1 must be"),
        ({"alphas": ()}, "alphas is empty"),
        ({"n_features": ()}, "n_features is empty"),
        ({"widths": ()}, "widths is empty"),
        ({"n_features": 5}, "teacher_widths=8 exceeds the number of features, 5"),
        ({"widths": [0]}, "widths=0 must be a whole number"),
        ({"widths": (2, 4, 12)}, "widths=12 exceeds the number of features, 10"),
        (
            {"widths": (2, 4, 12), "n_features": 40},
            r"widths holds 12, which exceeds the width 3 of a teacher",
        ),
        ({"widths": (2, "4")}, "widths='4' must be a whole number"),
        ({"widths": np.ma.masked_less(np.arange(3), 1)}, "widths is a masked array"),
        ({"widths": {2, 4}}, "widths is a set"),
        ({"n_features": iter([10])}, "n_features is a list_iterator"),
        ({"teacher_widths": 10**400}, "teacher_widths=.* must be a whole number"),
        ({"alphas": "0.9"}, "alphas='0.9' is text"),
        ({"learning_rate": 1e300}, "learning_rate=1e.300 must be"),
        ({"n_jobs": 10**400}, "n_jobs=.* must be a whole number"),
        ({"n_steps": True}, "n_steps=True must be a whole number"),
        ({"importance": {1: 2}}, "importance is a dict"),
        ({"importance": "zipf ", "n_features": 40}, "importance='zipf '"),
        ({"target": ["data"]}, "target="),
        ({"amplitude": 3}, "amplitude=3 is unknown"),
        ({"importance": [1.0, -1.0] * 20, "n_features": 40}, "importance: -1 is below 0"),
        ({"importance": np.zeros(40), "n_features": 40}, "importance is all zero"),
        ({"importance": np.ones(3)}, "importance has shape"),
        ({"importance": "pareto"}, "importance='pareto'"),
        ({"importance": -1.0}, "importance=-1.0 must be a finite number of at least 0"),
        ({"amplitude": "gamma"}, "amplitude='gamma'"),
        ({"target": "labels"}, "target='labels'"),
        ({"teacher_widths": None}, "teacher_widths=None with widths=None"),
        ({"teacher_widths": None, "widths": [2], "target": "teacher"}, "with target='teacher'"),
        ({"n_seeds": 0}, "n_seeds=0"),
        ({"tol": 1.0}, "tol=1.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_sweep_names_bad_input_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_sweep(**arguments)
