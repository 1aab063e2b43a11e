import os
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from geofloor._training import products
from geofloor.datasets import load_teacher
from geofloor.language_models._logits import LanguageModel

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    # Not by whether the function is there: if a new torch calls it otherwise, that is to be seen.
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch is built without MKL or oneDNN",
)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the rows that oneDNN got, which is turned on for the time."""
    monkeypatch.setattr(products, "_LINEAR", None)  # so that it is off again afterwards
    products.turn_on()
    seen = []
    onednn = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: seen.append(args[0].shape) or onednn(*args))
    return seen


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "off"), ("0", "off"), pytest.param("1", "on", marks=needs_onednn), ("yes", "must be 0 or 1")],
)
def test_the_environment_turns_it_on(value, expected):
    code = """
import torch
from torch.utils.flop_counter import flop_registry
n = len(flop_registry)
from geofloor._training import products
print("off" if products._LINEAR is None and len(flop_registry) == n else "on")
"""
    environment = {name: text for name, text in os.environ.items() if name != "GEOFLOOR_ONEDNN"}
    environment |= {} if value is None else {"GEOFLOOR_ONEDNN": value}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert expected in ran.stdout + ran.stderr


def normal(*shape, requires_grad=False):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(requires_grad)


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


@needs_onednn
@pytest.mark.parametrize(("n", "k", "m"), [(512, 128, 256), (256, 2048, 40), (2048, 20, 512)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_float64(n, k, m, bias, calls):
    rows, weight, offset = normal(n, k), normal(m, k), normal(m) if bias else None
    exact = rows.double() @ weight.double().T + (0.0 if offset is None else offset.double())
    assert error(products.linear(rows, weight, offset), exact) < 1e-6
    right = normal(k, m)
    assert error(products.product(rows, right), rows.double() @ right.double()) < 1e-6
    left = normal(n, m)
    for total in (products.zero_sum(torch.empty(m, k)), torch.zeros(m, k), torch.zeros(k, m).T):
        products.add_product(total, left, rows)
        products.add_product(total, left, rows)
        assert error(total, 2.0 * left.double().T @ rows.double()) < 1e-6
    assert len(calls) == (6 if k < m else 4)  # where sums by columns pay, and to the one that has them anyway


@needs_onednn
@pytest.mark.parametrize("shape", [(4, 128, 96), (512, 96)])
@pytest.mark.parametrize("n_outputs", [192, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "rows", "weight"])
def test_linear_layers_have_torchs_gradients(shape, n_outputs, bias, frozen, calls, monkeypatch):
    monkeypatch.setattr(products, "_WORTH", 1)

    def gradients(faster):
        rows = normal(*shape, requires_grad=frozen != "rows")
        layer = torch.nn.Linear(shape[-1], n_outputs, bias=bias)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(normal(*parameter.shape))
        layer.weight.requires_grad_(frozen != "weight")
        if faster:
            with products.faster_linear(2048, 2**20, CPU):
                outputs = layer(rows)
        else:
            outputs = layer(rows)
        outputs.square().mean().backward()
        return [outputs, rows.grad, *(parameter.grad for parameter in layer.parameters())]

    for ours, torchs in zip(gradients(faster=True), gradients(faster=False), strict=True):
        assert (ours is None) == (torchs is None)
        if ours is not None:
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3 - (frozen is not None)


@pytest.mark.parametrize(
    "arguments",
    [
        (normal(64, 64), normal(64, 64)),  # small
        (normal(512, 256).double(), normal(256, 256).double()),
        (normal(512, 256).bfloat16(), normal(256, 256).bfloat16()),
    ],
    ids=["small", "float64", "bfloat16"],
)
def test_all_else_is_torchs_own(arguments, calls):
    with products.faster_linear(2048, 2**20, CPU):
        layer = torch.nn.functional.linear(*arguments)
    torch.testing.assert_close(layer, torch.nn.functional.linear(*arguments), rtol=0, atol=0)
    torch.testing.assert_close(products.linear(*arguments), layer, rtol=0, atol=0)
    assert not calls


@needs_onednn
def test_gradients_that_torch_records_stay_torchs(calls):
    rows, weight = normal(512, 256, requires_grad=True), normal(256, 256)
    (products.linear(rows, weight).sum() + products.product(rows, weight).sum()).backward()
    assert error(rows.grad, (weight.sum(dim=0) + weight.sum(dim=1)).expand(512, 256)) < 1e-6
    assert not calls


@needs_onednn
@pytest.mark.usefixtures("calls")
def test_functions_are_looked_at_only_where_that_can_pay():
    layers = torch.nn.Sequential(torch.nn.Embedding(4096, 64), torch.nn.Linear(64, 256), torch.nn.LayerNorm(256))
    assert products.largest_matrix(layers) == 64 * 256
    for n_rows, device, looked_at in ((1024, "cpu", True), (1023, "cpu", False), (4096, "cuda", False)):
        context = products.faster_linear(n_rows, 64 * 256, torch.device(device))
        assert isinstance(context, TorchFunctionMode) == looked_at


@needs_onednn
def test_torch_counts_their_operations(calls):
    layer, rows = torch.nn.Linear(256, 512), normal(4, 128, 256, requires_grad=True)
    with FlopCounterMode(display=False) as counter, products.faster_linear(512, 2**20, CPU):
        layer(rows).sum().backward()
    assert len(calls) == 3
    assert counter.get_total_flops() == 3 * 2 * 512 * 256 * 512


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32")  # which turning oneDNN off talks of
def test_it_can_be_turned_off(calls):
    rows, weight = normal(512, 256), normal(256, 256)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=False):
        torch.testing.assert_close(products.linear(rows, weight), rows @ weight.T, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), products.faster_linear(2048, 2**20, CPU):
        assert torch.nn.functional.linear(rows, weight).dtype == torch.bfloat16
    assert not calls


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32")  # which turning oneDNN off talks of
def test_a_whole_model(calls):
    """GPT-NeoX with its linear layers, and GPT-2 with its own."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=128, n_embd=128, n_layer=1, n_head=2)).eval()
    for module in (load_teacher().model, gpt2):
        model = LanguageModel(module, "model")
        ids = torch.arange(1024).reshape(8, 128) % 64
        before = len(calls)
        ours = model.logits(ids).rows
        assert len(calls) == before + 4 * module.config.num_hidden_layers
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=False):
            torch.testing.assert_close(ours, model.logits(ids).rows, rtol=1e-4, atol=1e-4)
