import itertools
import threading

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.externals.loky import get_reusable_executor
from pandas.testing import assert_frame_equal
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from geofloor import FloorPredictor, ToyModel
from geofloor._training.checkpoints import read_tensors, write_tensors
from geofloor._training.devices import one_thread
from geofloor._training.schedules import warmup_cosine
from geofloor.toy import SparseFeatures, SweepError, _sweep, predict_sweep, summarize_sweep, toy_sweep
from geofloor.toy._engine import DistributionStream, Stack, evaluate, gradient, reconstruct

QUICK = {"n_steps": 150, "max_rounds": 2, "n_eval_samples": 4096}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def pattern_probabilities(rates, groups):
    """Probability of every activity pattern, by enumeration of what each unit can do."""
    units = [np.flatnonzero(np.asarray(groups) == label) for label in np.unique(groups)]
    probabilities = {}
    for choice in itertools.product(*[[None, *unit] for unit in units]):
        probability, pattern = 1.0, [0] * len(rates)
        for unit, member in zip(units, choice, strict=True):
            probability *= 1.0 - sum(rates[i] for i in unit) if member is None else rates[member]
            if member is not None:
                pattern[member] = 1
        probabilities[tuple(pattern)] = probability
    return probabilities


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0]], ids=["independent", "exclusive"])
@pytest.mark.parametrize("active_only", [False, True], ids=["all samples", "active samples"])
def test_patterns_occur_as_often_as_enumeration_says(groups, active_only):
    alpha = np.array([0.7, 0.9, 0.8, 0.6, 0.95])
    features = SparseFeatures(5, alpha, groups=groups)
    n_samples = 200_000
    if active_only:
        X = features.sample_active(n_samples, np.random.default_rng(0))
    else:
        X = features.sample(n_samples, random_state=0)
    expected = pattern_probabilities(1 - alpha, groups)
    assert features.empty_probability == pytest.approx(expected[0, 0, 0, 0, 0])
    if active_only:
        empty = expected.pop((0, 0, 0, 0, 0))
        expected = {pattern: p / (1 - empty) for pattern, p in expected.items()}
    observed = pd.Series(map(tuple, (X > 0).astype(int))).value_counts()
    assert set(observed.index) <= set(expected)
    counts = [observed.get(pattern, 0) for pattern in expected]
    assert stats.chisquare(counts, np.array(list(expected.values())) * n_samples).pvalue > 1e-3


@pytest.mark.parametrize("amplitude", ["uniform", "exponential", "half-normal", "constant"])
def test_moments_are_those_of_the_samples(amplitude):
    features = SparseFeatures(4, [0.5, 0.8, 0.9, 0.0], amplitude)
    X = features.sample(400_000, random_state=0).astype(np.float64)
    np.testing.assert_allclose(X.mean(axis=0), features.means, rtol=0.02)
    np.testing.assert_allclose((X**2).mean(axis=0), features.second_moments, rtol=0.02)
    np.testing.assert_allclose(X.var(axis=0), features.variances, rtol=0.03, atol=1e-12)


def random_stack(seed, *, n=7, d=3, n_models=5, teacher=False, empty=0.3):
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    return Stack(
        parameters=tensor(n_models, 1 + d, n),
        importances=tensor(n_models, n).abs(),
        source=torch.zeros(n_models, dtype=torch.long),
        empty_probability=torch.full((n_models,), empty),
        teacher=tensor(n_models, 1 + 4, n) if teacher else None,
    ), torch.from_numpy(rng.random((n_models, n, 50), dtype=np.float32))


def expected_loss(stack, X, p_empty):
    """Mean loss over a batch that is not empty and the empty sample, written as in the paper."""
    total = 0.0
    for m in range(len(stack.parameters)):

        def output(x, parameters):
            weight, bias = parameters[1:], parameters[0]
            return torch.relu(weight.T @ (weight @ x) + bias[:, None])

        for x, probability in ((X[m], 1 - p_empty), (torch.zeros(X.shape[1], 1), p_empty)):
            target = x if stack.teacher is None else output(x, stack.teacher[m])
            error = output(x, stack.parameters[m]) - target
            total = total + probability * (stack.importances[m, :, None] * error**2).sum(dim=0).mean()
    return total


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), teacher=st.booleans(), empty=st.floats(0, 0.99))
def test_gradient_is_autograds(seed, teacher, empty):
    stack, X = random_stack(seed, teacher=teacher, empty=empty)
    parameters = stack.parameters.clone().requires_grad_()
    expected_loss(stack._replace(parameters=parameters), X, empty).backward()
    target = reconstruct(stack.teacher, X) if teacher else None
    scale = parameters.grad.abs().max()
    assert (gradient(stack, X, target) - parameters.grad).abs().max() <= 1e-5 * scale


def test_padding_gets_no_gradient_and_changes_none():
    stack, X = random_stack(0)
    padded = stack._replace(
        parameters=torch.nn.functional.pad(stack.parameters, (0, 2, 0, 3)),
        importances=torch.nn.functional.pad(stack.importances, (0, 2)),
    )
    slope = gradient(padded, torch.nn.functional.pad(X, (0, 0, 0, 2)))
    torch.testing.assert_close(slope[:, :4, :7], gradient(stack, X))
    assert not slope[:, 4:].any()
    assert not slope[:, :, 7:].any()


def test_samples_that_are_not_empty_and_the_closed_form_give_the_full_expectation():
    # At alpha = 1/2 and a constant amplitude all patterns are equally likely, so that each of those that are not
    # empty, once, is their exact distribution: what is compared are expectations, without sampling.
    n = 6
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float32).T
    features = SparseFeatures(n, 0.5, "constant")
    stack, _ = random_stack(3, n=n, empty=features.empty_probability)
    n_models = len(stack.parameters)
    parameters = stack.parameters.clone().requires_grad_()
    everything = patterns.expand(n_models, -1, -1)
    expected_loss(stack._replace(parameters=parameters), everything, 0.0).backward()
    found = gradient(stack, everything[:, :, 1:].contiguous())
    torch.testing.assert_close(found, parameters.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_is_the_expected_loss_within_its_standard_error():
    features = SparseFeatures(6, [0.5, 0.9, 0.8, 0.7, 0.95, 0.6], groups=[0, 1, 0, 2, 3, 2])
    stream = DistributionStream(features, (0,))
    stack, _ = random_stack(5, n=6, empty=stream.empty_probability)
    stack = stack._replace(parameters=stack.parameters * 0.5)
    evaluation, _ = evaluate(stack, [stream], 100_000)
    X = torch.from_numpy(features.sample(400_000, random_state=1).T.copy()).expand(len(stack.parameters), -1, -1)
    losses = ((reconstruct(stack.parameters, X) - X) ** 2 * stack.importances[:, :, None]).sum(dim=1).double().numpy()
    z = (evaluation.loss - losses.mean(axis=1)) / np.hypot(
        evaluation.standard_error, losses.std(axis=1) / np.sqrt(losses.shape[1])
    )
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(
        (evaluation.feature_errors * stack.importances.numpy()).sum(axis=1), evaluation.loss, rtol=1e-6
    )


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


def test_floors_are_those_of_models_trained_one_at_a_time():
    rng = np.random.default_rng(0)
    differences, variances = [], []
    for seed in range(20):
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
    assert (np.abs(z) <= 2).sum() >= 18
    assert abs(np.mean(differences)) <= 2 * np.sqrt(np.mean(variances) / len(differences))


@pytest.mark.parametrize(
    ("n", "alpha", "width", "independent"),
    [(40, 0.9, 3, 0.06045), (40, 0.9, 6, 0.04118), (40, 0.9, 9, 0.02930), (20, 0.8, 5, 0.05683)],
)
def test_floors_are_those_measured_elsewhere(n, alpha, width, independent):
    # Means of five seeds of 10,000 steps of 1,024 samples, trained independently of this library.
    sweep = toy_sweep(n, [width], alpha, teacher_widths=None, n_seeds=10)
    assert sweep.floor.mean() == pytest.approx(independent, rel=0.02)


@pytest.fixture(scope="module")
def model():
    return ToyModel(4, n_init=4, random_state=0).fit(SparseFeatures(12, 0.9))


def test_loss_is_that_of_held_out_samples_and_splits_by_feature(model):
    features = SparseFeatures(12, 0.9)
    X = features.sample(400_000, random_state=1)
    losses = (X - model.predict(X)) ** 2 @ model.importances_
    error = np.hypot(losses.std() / np.sqrt(len(X)), model.standard_error_)
    assert abs(losses.mean() - model.floor_) < 4 * error
    assert model.score(X) == pytest.approx(-losses.mean(), rel=1e-6)
    assert model.feature_losses_.sum() == pytest.approx(model.floor_)
    assert model.dropped_share_ + model.interference_share_ == pytest.approx(1.0)
    assert model.data_floor_ == model.floor_


def test_geometry_follows_its_definitions(model):
    W = model.components_.astype(np.float64)
    assert model.n_kept_ == sum(np.linalg.norm(W[:, i]) ** 2 >= 0.5 for i in range(12))
    for i in range(12):
        norm = W[:, i] @ W[:, i]
        assert model.squared_norms_[i] == pytest.approx(norm)
        share = norm**2 / sum((W[:, i] @ W[:, j]) ** 2 for j in range(12)) if norm else 0.0
        assert model.fractional_capacities_[i] == pytest.approx(share)
    assert model.fractional_capacities_.sum() <= 4 + 1e-6  # there are four dimensions to share


def test_the_best_start_is_kept_and_all_are_reported(model):
    assert len(model.floors_) == 4
    assert model.floor_ in model.floors_
    assert model.floor_ <= np.min(model.floors_) + 2 * model.standard_error_
    assert model.history_[0]["loss"] > model.history_[-1]["loss"]
    assert model.history_[-1]["step"] == model.n_steps_


def test_a_model_as_wide_as_its_features_loses_next_to_nothing():
    features = SparseFeatures(5, 0.8)
    full = ToyModel(5, importance="uniform", random_state=0).fit(features)
    assert full.floor_ < 1e-3 * features.second_moments.sum()


def test_exclusive_features_cost_less_than_independent_ones():
    alone = ToyModel(2, importance="uniform", n_init=5, random_state=0).fit(SparseFeatures(8, 0.9))
    grouped = SparseFeatures(8, 0.9, groups=np.zeros(8))
    assert ToyModel(2, importance="uniform", n_init=5, random_state=0).fit(grouped).floor_ < 0.9 * alone.floor_


def test_scale_of_samples_and_importances_only_scales_the_floor():
    X = SparseFeatures(8, 0.9).sample(4000, random_state=0)
    settings = {"random_state": 0, "n_steps": 300, "max_rounds": 3}
    plain = ToyModel(3, importance="uniform", **settings).fit(X)
    scaled = ToyModel(3, importance=np.full(8, 1e-6), **settings).fit(X * 1024)
    assert scaled.floor_ == pytest.approx(plain.floor_ * 1024**2 * 1e-6, rel=1e-4)
    np.testing.assert_allclose(scaled.components_, plain.components_, atol=1e-4)
    np.testing.assert_allclose(scaled.intercept_, plain.intercept_ * 1024, atol=0.1)
    assert plain.floor_ == pytest.approx(-plain.score(X), rel=1e-4)


def test_student_learns_the_teachers_output(model):
    features = SparseFeatures(12, 0.9)
    student = ToyModel(2, random_state=1).fit(features, teacher=model)
    X = features.sample(200_000, random_state=2)
    against_teacher = np.mean((student.predict(X) - model.predict(X)) ** 2 @ model.importances_)
    assert student.floor_ == pytest.approx(against_teacher, rel=0.05)
    assert student.data_floor_ == pytest.approx(-student.score(X), rel=0.05)
    assert student.floor_ < student.data_floor_
    with pytest.raises(ValueError, match="teacher has 12 features, the data have 5"):
        ToyModel(2).fit(SparseFeatures(5, 0.9), teacher=model)


def test_a_model_that_still_learns_says_so():
    with pytest.warns(ConvergenceWarning, match="raise max_rounds"):
        model = ToyModel(3, n_steps=20, max_rounds=2, n_eval_samples=1024, random_state=0).fit(SparseFeatures(20, 0.9))
    assert not model.converged_


SMALL = {"teacher_widths": [2, 4], "n_seeds": 3, **QUICK}


@pytest.fixture(scope="module")
def sweep():
    with pytest.warns(ConvergenceWarning):
        return toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL)


def test_sweep_has_a_row_for_every_point_and_seed(sweep):
    points = [(n, a, t, d) for n in (6, 10) for a in (0.8, 0.95) for t in (2, 4) for d in range(1, t + 1)]
    assert sweep.groupby(["n_features", "alpha", "teacher_width", "width"]).size().to_dict() == dict.fromkeys(points, 3)
    # With the data as the target a teacher only bounds the width.
    twice = sweep[sweep.width <= 2].groupby(["n_features", "alpha", "width", "seed"]).floor
    assert (twice.min() == twice.max()).all()
    zero = [np.sum((1 - a) / 3 / np.arange(1, n + 1)) for n, a in zip(sweep.n_features, sweep.alpha, strict=True)]
    np.testing.assert_allclose(sweep.total, zero)
    assert (sweep.floor < sweep.total).all()


@pytest.mark.parametrize("change", [{"n_jobs": 2}, {"models_per_batch": 5}, {"models_per_batch": 1, "n_jobs": 2}])
def test_numbers_do_not_depend_on_workers_or_batches(sweep, change):
    assert_frame_equal(toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL, **change), sweep, check_exact=True)


def test_numbers_do_not_depend_on_the_rest_of_the_grid(sweep):
    alone = toy_sweep(10, [3], 0.95, **{**SMALL, "teacher_widths": [4], "n_seeds": 2})
    chosen = sweep.query("n_features == 10 and alpha == 0.95 and teacher_width == 4 and width == 3 and seed < 2")
    assert_frame_equal(alone, chosen.reset_index(drop=True), check_exact=True)


def test_numbers_are_the_same_on_a_dask_cluster(sweep):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert_frame_equal(toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL), sweep, check_exact=True)


def test_numbers_are_the_same_with_multiprocessing(sweep):
    with joblib.parallel_config(backend="multiprocessing", n_jobs=2):
        assert_frame_equal(toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL), sweep, check_exact=True)


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::ResourceWarning")
def test_numbers_are_the_same_with_ray(sweep):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with joblib.parallel_config(backend="ray", n_jobs=2):
            assert_frame_equal(toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL), sweep, check_exact=True)
    finally:
        ray.shutdown()


def test_settings_may_be_numbers_of_numpy(sweep, tmp_path):
    counts = {name: np.int64(value) for name, value in {**QUICK, "n_seeds": 3, "batch_size": 128}.items()}
    arguments = {"n_features": np.array([6, 10]), "alphas": np.array([0.8, 0.95]), "checkpoint_dir": tmp_path}
    again = toy_sweep(**{**SMALL, **counts}, **arguments, learning_rate=np.float64(1e-2))
    assert_frame_equal(again, sweep, check_exact=True)
    toy_sweep(6, [2], 0.9, **{**SMALL, **counts}, tol=np.float32(5e-3), checkpoint_dir=tmp_path)


def test_a_sweep_goes_on_from_its_finished_parts(sweep, tmp_path):
    arguments = {"alphas": (0.8, 0.95), **SMALL, "models_per_batch": 5, "checkpoint_dir": tmp_path}
    toy_sweep((6, 10), **arguments)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 4
    parts[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    assert_frame_equal(toy_sweep((6, 10), **arguments), sweep, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in parts[1:]} == kept
    assert parts[0].exists()
    toy_sweep(6, **{**arguments, "tol": 0.01})  # other settings are another sweep
    assert len(list(tmp_path.iterdir())) > len(parts)
    parts[0].write_bytes(parts[0].read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{parts[0].name}' is truncated"):
        toy_sweep((6, 10), **arguments)


def test_parts_that_are_swapped_or_hold_what_no_model_can_have_are_refused(tmp_path):
    arguments = {"n_features": 6, "alphas": (0.8, 0.95), **SMALL, "models_per_batch": 9, "checkpoint_dir": tmp_path}
    toy_sweep(**arguments)
    parts = sorted(tmp_path.iterdir())
    contents = [part.read_bytes() for part in parts]
    parts[0].write_bytes(contents[1])
    parts[1].write_bytes(contents[0])
    with pytest.raises(ValueError, match="it is the part of another sweep or of other models; write it again"):
        toy_sweep(**arguments)
    parts[1].write_bytes(contents[1])
    parts[0].write_bytes(contents[0])
    tensors, specification = read_tensors(parts[0], kind="geofloor toy sweep part")
    floor = tensors["floor"]
    for change, message in [
        ({"floor": None}, r".*lacks \['floor'\]"),
        ({"floor": floor[:-1]}, "tensor floor is .*of shape"),
        ({"floor": floor.float()}, "tensor floor is torch.float32"),
        ({"extra": floor}, r".*unknown tensors \['extra'\]"),
        ({"floor": -floor}, "no model has such values of floor"),
        ({"floor": floor * np.nan}, "tensor floor is not finite"),
        ({"kept": tensors["kept"] + 7}, "no model has such values of kept"),
        ({"n_steps": tensors["n_steps"] * 100}, "no model has such values of n_steps"),
        ({"parameters": tensors["parameters"] / 0}, "tensor parameters is not finite"),
    ]:
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        write_tensors(parts[0], changed, kind="geofloor toy sweep part", metadata=specification)
        with pytest.raises(ValueError, match=f"{parts[0].name}' can't be used: .*{message}"):
            toy_sweep(**arguments)
    settings = {**specification["settings"], "n_steps": 1}
    write_tensors(parts[0], tensors, kind="geofloor toy sweep part", metadata={**specification, "settings": settings})
    with pytest.raises(ValueError, match="it is the part of another sweep"):
        toy_sweep(**arguments)


def test_a_full_disk_keeps_what_is_trained(sweep, tmp_path, monkeypatch):
    arguments = {"alphas": (0.8, 0.95), **SMALL, "models_per_batch": 5, "checkpoint_dir": tmp_path}
    write = _sweep.write_tensors
    written = []

    def full(path, *others, **named):
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, *others, **named)

    monkeypatch.setattr(_sweep, "write_tensors", full)
    with pytest.raises(
        SweepError, match=f"it is trained, but can't be kept: OSError.* No space.*'{tmp_path}/"
    ) as caught:
        toy_sweep((6, 10), **arguments)
    assert len(caught.value.finished) == len(sweep.drop(columns="teacher_width").drop_duplicates())
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in written}
    assert_frame_equal(toy_sweep((6, 10), **arguments), sweep, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in written} == kept


def test_a_checkpoint_dir_that_cannot_be_written_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(_sweep, "_run_part", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="checkpoint_dir='.*' can't be written"):
            toy_sweep(6, [2], 0.9, **SMALL, checkpoint_dir=path)


def test_a_worker_that_dies_is_reported_and_its_parts_are_run_again(sweep, tmp_path):
    psutil = pytest.importorskip("psutil")
    get_reusable_executor(max_workers=2).shutdown(wait=True)  # the workers of other tests
    done = threading.Event()

    def kill_a_worker():
        while not done.wait(0.01):
            workers = [child for child in psutil.Process().children() if "popen_loky" in " ".join(child.cmdline())]
            if len(workers) == 2 and len(list(tmp_path.iterdir())) >= 2:
                workers[0].kill()
                return

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    with pytest.warns(UserWarning, match=r"worker of the sweep died .* run again"):
        again = toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL, models_per_batch=2, n_jobs=2, checkpoint_dir=tmp_path)
    done.set()
    assert_frame_equal(again, sweep, check_exact=True)


def test_parts_that_fail_are_counted_with_the_reason_and_what_to_do():
    with pytest.raises(SweepError, match=r"parts failed, with .* non-finite .* checkpoint_dir") as caught:
        toy_sweep(6, [1, 2], (0.8, 0.9), teacher_widths=None, n_seeds=2, learning_rate=1e30, models_per_batch=4)
    assert caught.value.finished.empty


def test_distilled_students_have_teachers_of_their_own():
    sweep = toy_sweep(8, alphas=0.9, teacher_widths=[2, 4], n_seeds=3, target="teacher", n_steps=600, max_rounds=5)
    summary = summarize_sweep(sweep).set_index(["teacher_width", "width"])
    # A student learns a smaller teacher's few features well, and a larger teacher's many badly.
    assert summary.floor[2, 2] < summary.floor[4, 2] < summary.floor[4, 1]
    assert (summary.floor < summary.data_floor).all()
    own = toy_sweep(8, [2], 0.9, teacher_widths=None, n_seeds=3, n_steps=600, max_rounds=5)
    assert own.floor.mean() <= 1.05 * summary.data_floor[2, 2]


def test_summary_and_predictions(sweep):
    summary = summarize_sweep(sweep)
    point = sweep.query("n_features == 6 and alpha == 0.8 and teacher_width == 4 and width == 2")
    row = summary.query("n_features == 6 and alpha == 0.8 and teacher_width == 4 and width == 2").iloc[0]
    assert row.floor == pytest.approx(point.floor.mean())
    assert row.floor_std == pytest.approx(np.std(point.floor, ddof=1))
    assert row.floor_best == point.floor.min()
    assert row.standard_error**2 == pytest.approx(np.var(point.floor, ddof=1) / 3 + point.standard_error.mean() ** 2)

    def eq2(n, alpha):
        return FloorPredictor(alpha).fit(1 / np.arange(1, n + 1), second_moments=np.full(n, (1 - alpha) / 3))

    predicted = predict_sweep(summary, {"Eq. 2": eq2})
    # g(0.8) = 3.107: two dimensions keep six features, all there are; one keeps three.
    here = predicted.query("n_features == 6 and alpha == 0.8").groupby("width")["Eq. 2"].first()
    assert here[2] == 0.0
    assert here[1] == pytest.approx(0.2 / 3 * (1 / 4 + 1 / 5 + 1 / 6))
    with pytest.raises(ValueError, match="floor_std"):
        predict_sweep(summary, {"floor_std": eq2})
    with pytest.raises(ValueError, match="no column \\['kept'\\]"):
        summarize_sweep(sweep.drop(columns="kept"))


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
            r"widths holds 12, which is above every teacher's width of \[3, 5, 8",
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.9), "n_features=0"),
        ((3, [0.9, 0.8]), "alpha has shape"),
        ((3, [0.9, 0.8, np.nan]), "alpha contains NaN"),
        ((3, "0.9"), "alpha='0.9' is text"),
        ((3, 1.0), "alpha=1: a sparsity"),
        ((3.0, 0.9), "n_features=3.0 must be a whole number"),
        ((3, 0.5, 7), "amplitude=7 is unknown"),
        ((3, 0.5, "uniform", {0, 1, 2}), "groups is a set"),
        ((3, 0.5, "uniform", [0, 0, 0]), "add up to 1.5"),
        ((3, 0.5, "uniform", [0, 0]), "groups has shape"),
    ],
)
def test_distribution_names_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseFeatures(*arguments)


def test_model_names_bad_input():
    features = SparseFeatures(5, 0.9)
    with pytest.raises(ValueError, match="n_hidden=6 exceeds the number of features, 5"):
        ToyModel(6).fit(features)
    with pytest.raises(ValueError, match="n_hidden=2.5 must be a whole number"):
        ToyModel(2.5).fit(features)
    with pytest.raises(ValueError, match="n_init=0"):
        ToyModel(2, n_init=0).fit(features)
    with pytest.raises(ValueError, match="NaN"):
        ToyModel(1).fit([[0.0, np.nan]])
    with pytest.raises(ValueError, match="non-finite with learning_rate=1e\\+30"):
        ToyModel(2, learning_rate=1e30, **QUICK).fit(features)
    fitted = ToyModel(2, random_state=0, **QUICK).fit(features)
    with pytest.raises(ValueError, match="X has 3 dimensions, but the model has n_hidden=2"):
        fitted.inverse_transform(np.ones((1, 3)))
    with pytest.raises(TypeError, match="teacher=3 is a int; give a fitted ToyModel"):
        ToyModel(2).fit(features, teacher=3)
    with pytest.raises(ValueError, match="n_samples='3' must be a whole number"):
        features.sample("3")


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1e300, "X holds .*e.299, which is above 1e.30 and too large to square"), (1e-200, "too small to square")],
)
def test_samples_whose_squares_are_no_numbers_are_refused(factor, message):
    X = SparseFeatures(4, 0.5).sample(50, random_state=0).astype(np.float64)
    with pytest.raises(ValueError, match=message):
        ToyModel(1).fit(factor * X)
    if factor > 1:
        fitted = ToyModel(1, random_state=0, **QUICK).fit(X)
        for method in (fitted.transform, fitted.predict, fitted.score):
            with pytest.raises(ValueError, match=message):
                method(factor * X)


@pytest.mark.filterwarnings("ignore:.*still falling")
def test_small_integers_of_numpy_count_like_pythons():
    settings = {"n_steps": 200, "max_rounds": 1, "n_eval_samples": 1024, "batch_size": 16}
    plain = ToyModel(2, n_init=2, random_state=0, **settings).fit(SparseFeatures(5, 0.8))
    small = {name: np.uint64(value) for name, value in settings.items()} | {"batch_size": np.int8(16)}
    other = ToyModel(np.int8(2), n_init=np.uint64(2), random_state=0, **small).fit(SparseFeatures(np.uint64(5), 0.8))
    assert other.floor_ == plain.floor_
    arguments = {"teacher_widths": None, "n_seeds": 2, "models_per_batch": 1}
    expected = toy_sweep(5, [2], 0.8, **arguments, **settings)
    arguments = {"teacher_widths": None, "n_seeds": np.int8(2), "models_per_batch": np.uint64(1)}
    found = toy_sweep(np.uint64(5), np.array([2], dtype=np.int8), np.float64(0.8), **arguments, **small)
    pd.testing.assert_frame_equal(found, expected)


def test_a_distribution_keeps_nothing_of_the_callers():
    alpha, groups = np.full(4, 0.9), np.array([0, 0, 1, 1])
    features = SparseFeatures(4, alpha, groups=groups)
    alpha[:], groups[:] = 0.0, 0
    assert features.means.tolist() == SparseFeatures(4, 0.9, groups=[0, 0, 1, 1]).means.tolist()
    assert features.empty_probability == pytest.approx(0.8**2)


def test_wrong_kinds_of_tables_are_named(sweep):
    with pytest.raises(TypeError, match="sweep=3 is a int; give what toy_sweep returned"):
        summarize_sweep(3)
    summary = summarize_sweep(sweep)
    with pytest.raises(TypeError, match="predictors=.* is a list; give a dict"):
        predict_sweep(summary, [])
    with pytest.raises(TypeError, match=r"predictors\['a'\]=3 is no function"):
        predict_sweep(summary, {"a": 3})
    with pytest.raises(ValueError, match=r"summary has no column \['alpha'\]"):
        predict_sweep(summary.drop(columns="alpha"), {})
