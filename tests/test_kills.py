"""Ten kills of those that benchmarks/kills.py does a hundred of."""

import sys

import kills
import numpy as np
import pytest

SMALL = ["SparseAutoencoder.fit", "transform_to_store", "token_blocks(path)", "distill_widths", "toy_sweep"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a server that forks")
@pytest.mark.parametrize("name", [*SMALL, pytest.param("plan_distillation", marks=pytest.mark.slow)])
def test_killed_operations_resume_to_the_bits_of_runs_never_stopped(name, tmp_path):
    found = kills.kill_and_resume(name, 2, np.random.default_rng(0), tmp_path)
    assert found == {"operation": name, "kills": 2, "to the bit": 2, "refused": 0, "different": 0, "files left": 0}


def test_a_run_that_resumes_to_other_bits_or_refuses_is_counted(tmp_path, monkeypatch):
    runs = iter(
        [
            kills.Finished("done", "right", 1.0, 0),
            *[kills.Finished("killed", "", 0.5, 0), kills.Finished("done", "wrong", 1.0, 0)],
            kills.Finished("done", "right", 1.0, 0),  # which the kill came too late for
            *[kills.Finished("killed", "", 0.5, 0), kills.Finished("refused", "Traceback", 1.0, 0)],
        ]
    )

    def run(name, folder, **_):
        folder.mkdir(exist_ok=True)
        (folder / f"{folder.name}.part").touch()
        return next(runs)

    monkeypatch.setattr(kills, "run", run)
    found = kills.kill_and_resume("anything", 2, np.random.default_rng(0), tmp_path)
    assert found == {
        "operation": "anything",
        "kills": 2,
        "to the bit": 0,
        "refused": 1,
        "different": 1,
        "files left": 2,
    }


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
@pytest.mark.parametrize(
    ("operation", "left"),
    [
        (kills.sweep, ".{}.abcdefgh.part"),
        (kills.write_tokens, ".{}.lock"),
        (kills.store_activations, ".{}.lock"),
    ],
)
def test_what_a_writer_killed_just_after_its_last_file_leaves_is_removed(operation, left, tmp_path):
    operation(tmp_path)
    files = set(kills._files(tmp_path))
    written = [file for file in files if file.suffix == ".safetensors" or file.name in {"tokens.npy", "manifest.json"}]
    for file in written:
        beside = file.with_name(left.format(file.name))
        beside.mkdir() if left.endswith(".part") else beside.touch()
    operation(tmp_path)
    assert written
    assert set(kills._files(tmp_path)) == files
