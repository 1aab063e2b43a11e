import errno
import os
import signal
import subprocess
import sys
import tempfile

import pytest
import torch
from safetensors import SafetensorError

from geofloor._files import atomic
from geofloor._files.atomic import atomic_path, check_writable, write_json
from geofloor._training import checkpoints
from geofloor._training.checkpoints import write_tensors


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"step": 1})

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half a file")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


KILLED = """
import os, signal, sys
from geofloor._files.atomic import atomic_path

with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(bytes(1000))
    temporary.with_name(".tmpabcdef").touch()  # as safetensors writes
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
@pytest.mark.parametrize("remove", [lambda path: write_json(path, 1), lambda path: check_writable("path", path)])
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, remove):
    path = tmp_path / "x"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    others = [tmp_path / name for name in (".y.abcdefgh.part", ".x.json", ".x.abc.part")]
    for other in others:
        other.mkdir()
    with atomic_path(path) as living:
        living.write_text("2")
        remove(path)
        assert living.exists()
        assert not left.exists()
    assert path.read_text() == "2"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_full_disk_is_an_os_error_with_its_number_and_the_path(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(2)}, kind="test", metadata={})
    before = path.read_bytes()

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(path, {"a": torch.zeros(2)}, kind="test", metadata={})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))

    def full_too(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_too)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_json(path, 1)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), atomic_path(tmp_path / "x"):
        (tmp_path / "other").read_bytes()


def test_a_path_that_can_not_be_written_is_refused_by_the_arguments_name(tmp_path):
    check_writable("file", None)
    check_writable("file", tmp_path / "new" / "x")
    assert not any((tmp_path / "new").iterdir())
    (tmp_path / "x").write_text("kept")
    check_writable("file", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "kept"
    for path, message in [
        (tmp_path, "is a folder"),
        ("", "is a folder"),
        (tmp_path / "x" / "y", "can't be written"),
        (tmp_path / "x" / "y" / "z", "can't be written"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "can't be written"),
        ("/dev/null", "a device"),
        (3, "must be a path"),
    ]:
        with pytest.raises(ValueError, match=f"file=.*{message}"):
            check_writable("file", path)


@pytest.mark.parametrize("function", ["mkdir", "mkdtemp"])
def test_a_read_only_folder_is_refused_by_the_arguments_name(tmp_path, monkeypatch, function):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "there")

    monkeypatch.setattr(*((atomic.Path, "mkdir") if function == "mkdir" else (tempfile, "mkdtemp")), refuse)
    with pytest.raises(ValueError, match="file=.*Read-only file system.*give another path"):
        check_writable("file", tmp_path / "new" / "x")


# Parameters
