"""Launch a file of tests as a script in two processes on the CPU, and collect the results of each."""

import os
import pickle
import subprocess
import sys
from pathlib import Path


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
