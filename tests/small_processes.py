"""Run a function in a process of its own and kill it, or launch a file of tests as a script in two processes."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path


def call_apart(server, act, *arguments, kill_at=None):
    """Call ``act(report, *arguments)`` in a process of its own, and return the values that it reported.

    The process starts from the fixture `server`, with all imports done; `act` is a function of a module. Kill the
    process as soon as ``kill_at`` holds for a reported value.
    """
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=act, args=(sender.send, *arguments))
    process.start()
    sender.close()
    reported = []
    with contextlib.suppress(EOFError):
        while True:
            reported.append(receiver.recv())
            if kill_at is not None and kill_at(reported[-1]):
                process.kill()
                break
    process.join(300)
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)
    return reported


def kill_at_file(server, path, act, *arguments):
    """Call ``act(*arguments)`` in another process, and kill it once a file or folder exists."""
    process = server.Process(target=act, args=arguments)
    process.start()
    while not path.exists() and process.is_alive():
        process.join(0.002)
    process.kill()
    process.join(300)
    assert path.exists()
    assert process.exitcode == -signal.SIGKILL


def launch(script, folder, *arguments):
    """Run a script under ``accelerate launch`` with a folder and further arguments, and return its exit status."""
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    tests = Path(__file__).parent
    paths = [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", *command, str(script), str(folder), *arguments],
        check=False,
        timeout=300,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
    ).returncode


def rank():
    return int(os.environ["RANK"])


def write_result(folder, result):
    """Write the result of one of the processes."""
    Path(folder, f"{rank()}.pickle").write_bytes(pickle.dumps(result))


def read_results(folder):
    """Read the results of both processes."""
    return [pickle.loads(Path(folder, f"{rank}.pickle").read_bytes()) for rank in range(2)]


def describe_failure(act, *arguments):
    """Call a function that fails, and return its error as text."""
    try:
        act(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
