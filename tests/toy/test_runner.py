import threading

import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from pandas.testing import assert_frame_equal
from small_sweeps import SMALL

from geofloor._training.checkpoints import read_tensors, write_tensors
from geofloor.toy import SweepError, _runner, toy_sweep


@pytest.mark.parametrize("change", [{"n_jobs": 2}, {"models_per_batch": 5}, {"models_per_batch": 1, "n_jobs": 2}])
def test_numbers_do_not_depend_on_workers_or_batches(sweep, change):
    assert_frame_equal(toy_sweep((6, 10), alphas=(0.8, 0.95), **SMALL, **change), sweep, check_exact=True)


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
    write = _runner.write_tensors
    written = []

    def full(path, *others, **named):
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, *others, **named)

    monkeypatch.setattr(_runner, "write_tensors", full)
    with pytest.raises(
        SweepError, match=f"it is trained, but can't be kept: OSError.* No space.*'{tmp_path}/"
    ) as caught:
        toy_sweep((6, 10), **arguments)
    assert len(caught.value.finished) == len(sweep.drop(columns="teacher_width").drop_duplicates())
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in written}
    assert_frame_equal(toy_sweep((6, 10), **arguments), sweep, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in written} == kept


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
