import ctypes
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor, DistilledStudent
from geofloor._training.devices import memory_advice, resolve_device
from geofloor.datasets import load_teacher
from geofloor.language_models import zero_width_kl
from geofloor.students import make_student

MAPPED = """
import ctypes
import torch
from geofloor._training.devices import keep_freed_memory

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
MallocInformation = type("MallocInformation", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in names]})
information = ctypes.CDLL(None).mallinfo2
information.restype = MallocInformation
keep_freed_memory(torch.device("cpu"))
before = information().hblkhd  # bytes in blocks that go back to the system as soon as they are freed
tensor = torch.ones(5 * 2**20)  # 20 MiB
print(information().hblkhd - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="it is glibc that gives freed memory back so soon, and mallinfo2 that tells",
)
def test_freed_memory_stays_with_the_process():
    # A threshold that is set by the environment, as Dask's workers have it, stays as it is.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run([sys.executable, "-c", MAPPED], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 0


def test_devices_that_are_not_there_are_named():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device='gpu' is not a device"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="device='cuda:99' is not on this machine"):
        resolve_device("cuda:99")


# Muon


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda: torch.empty(2**58, dtype=torch.uint8), "Out of memory .*you tried to allocate.*; lower n=3"),
        (lambda: np.empty(2**58, dtype=np.uint8), "Out of memory .Unable to allocate .*; lower n=3"),
    ],
)
def test_memory_that_is_not_there_comes_with_what_to_lower(take, message):
    with pytest.raises(MemoryError, match=message), memory_advice("lower n=2"), memory_advice("lower n=3"):
        take()


def test_advice_leaves_other_errors_alone():
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), memory_advice("lower n=2"):
        torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize("device", [10**40, np.array([1, 2]), None, 0, [], 1j])
def test_a_device_of_another_kind_is_named(device):
    with pytest.raises(ValueError, match="device=.* must be 'auto', 'cpu'"):
        resolve_device(device)


class Hungry(torch.nn.Module):
    """Logits, and on text no memory left."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def forward(self, ids):
        if ids.shape[1] > 2:  # by which it is tried out
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return self.weight.expand(*ids.shape, 8)


def test_estimators_without_memory_say_which_parameters_to_lower():
    tokens, model = np.arange(40).reshape(8, 5) % 8, load_teacher().model
    model.gpt_neox.layers[0].register_forward_hook(lambda *_: Hungry()(torch.zeros(1, 3)))
    with pytest.raises(MemoryError, match="CUDA out of memory.*lower batch_size=8 or max_length=512"):
        ActivationExtractor(model, 1).fit()
    with pytest.raises(MemoryError, match="lower batch_size=4"):
        zero_width_kl(Hungry(), tokens, batch_size=4)
    with pytest.raises(MemoryError, match="lower batch_size=8, n_positions=99 or n_fitted=20480"):
        BottleneckPredictor(Hungry(), n_positions=99).fit(tokens)
    teacher = load_teacher().model
    teacher.gpt_neox.layers[2].register_forward_hook(
        lambda module, inputs, output: Hungry()(inputs[0][..., 0]) if inputs[0].shape[1] > 2 else None
    )
    with pytest.raises(MemoryError, match="lower batch_size=8"):
        AblationPredictor(teacher, 1, n_points=3).fit(tokens)

    @make_student.register(Hungry)
    def _(teacher, width, *, init="random", random_state=None, tokens=None):
        return torch.nn.Sequential(torch.nn.Embedding(8, width), torch.nn.Linear(width, 8))

    with pytest.raises(MemoryError, match="lower batch_size=2 or raise gradient_accumulation=1"):
        DistilledStudent(Hungry(), 2, batch_size=2, n_steps=4, warmup_steps=1).fit(tokens)
    student = DistilledStudent(Hungry(), 8, batch_size=2)
    student._set_model(Hungry())
    for method in (student.predict, student.predict_log_proba, student.score):
        with pytest.raises(MemoryError, match="lower batch_size=2"):
            method(tokens)
