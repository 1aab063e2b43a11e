import multiprocessing
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from geofloor import SparseAutoencoder
from geofloor._training.devices import one_thread
from geofloor.features import _cpu_step, _kernels, _precision, _selection, _selection_kernels, _threads, _trainer
from geofloor.features._cpu_step import SparseStep
from geofloor.features._sparse_step import Parameters
from geofloor.features._sparsity import find_cutoff

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # small fits warn
WEIGHTS = ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_")


KINDS = [
    {"activation": "topk", "learning_rate": 1e-3},
    {"activation": "batchtopk", "learning_rate": 1e-3},
    {"activation": "relu", "l0": "auto", "l1_coefficient": 4.0, "learning_rate": 1e-2},
    {"activation": "relu", "l0": 4, "learning_rate": 1e-2},
    {"activation": "topk", "learning_rate": 1e-3, "precision": "bf16"},
    {"activation": "batchtopk", "learning_rate": 1e-3, "precision": "bf16"},
]


@pytest.fixture
def topk():
    return SparseAutoencoder(48, l0=4, batch_size=100, n_epochs=5, random_state=0, device="cpu")


@pytest.fixture(autouse=True)
def bf16_anywhere(monkeypatch):
    """Let CPUs without bfloat16 emulate it."""
    monkeypatch.setattr(_precision, "has_bf16", lambda device: True)


@pytest.fixture
def relu_steps(monkeypatch):
    """Let ReLU take the sparse step early, and list whether each step was sparse."""
    steps, take = [], SparseStep.take

    def listed(self, *arguments, **given):
        result = take(self, *arguments, **given)
        steps.append(result is not None)
        return result

    monkeypatch.setattr(_selection, "_LATENTS_PER_CODE", 4)
    monkeypatch.setattr(SparseStep, "take", listed)
    return steps


@pytest.fixture
def many_threads(monkeypatch):
    """Divide kernels of any size between three threads."""
    monkeypatch.setattr(_threads, "_WORTH_THREADS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def random_parameters(n_latents=300, n_inputs=17, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(n_latents, n_inputs), (n_latents,), (n_latents, n_inputs), (n_inputs,)]
    parameters = Parameters(*(torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes))
    parameters.decoder_weight.div_(parameters.decoder_weight.norm(dim=1, keepdim=True))
    return parameters


def random_inputs(n_rows=50, n_inputs=17, seed=1, dtype=torch.float64):
    return torch.randn(n_rows, n_inputs, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_terms(parameters, inputs, l0, activation="topk"):
    """Compute the squared error and the sum of the codes per row, for automatic differentiation."""
    centered = inputs - parameters.decoder_bias
    codes = torch.relu(centered @ parameters.encoder_weight.T + parameters.encoder_bias)
    if activation == "topk":
        kept = codes * (codes >= codes.sort(dim=1, descending=True).values[:, l0 - 1 : l0])
    elif activation == "batchtopk":
        kept = codes * (codes > codes.flatten().sort(descending=True).values[l0 * len(inputs)])
    else:
        kept = codes
    error = centered - kept @ parameters.decoder_weight
    return error.square().sum(1).mean(), kept.sum(1).mean(), (kept > 0).sum(0)


def project(gradient, decoder):
    return gradient - (gradient * decoder).sum(1, keepdim=True) * decoder


def sparse_step(parameters, l0, **given):
    optimizer = torch.optim.Adam(list(parameters), lr=3e-3, betas=(0.8, 0.99))
    return SparseStep(parameters, optimizer, l0=l0, **given)


def assert_same_weights(one, other):
    for name in WEIGHTS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    ("activation", "l0"), [("topk", 1), ("topk", 6), ("topk", 37), ("batchtopk", 1), ("batchtopk", 6), ("relu", None)]
)
@pytest.mark.parametrize("l1_coefficient", [0.0, 0.3])
def test_gradients_are_those_of_automatic_differentiation(monkeypatch, activation, l0, l1_coefficient):
    monkeypatch.setattr(_selection, "_PREACTIVATIONS_AT_A_TIME", 7 * 300)  # rows come in pieces of 7
    initial = random_parameters()
    if activation == "relu":
        initial.encoder_bias.sub_(12.0)  # so that codes are few
    parameters = Parameters(*(parameter.clone().requires_grad_() for parameter in initial))
    reconstruction, l1, firings = loss_terms(parameters, random_inputs(), l0, activation)
    expected = list(torch.autograd.grad(reconstruction + l1_coefficient * l1, list(parameters)))
    expected[2] = project(expected[2], parameters.decoder_weight.detach())
    parameters = Parameters(*(parameter.clone() for parameter in initial))
    with sparse_step(parameters, l0, activation=activation) as step:
        step.take(random_inputs(seed=2))  # which leaves gradients to be overwritten
        for parameter, before in zip(parameters, initial, strict=True):
            parameter.copy_(before)
        result = step.take(random_inputs(), l1_coefficient=l1_coefficient)
    assert (firings == 0).any()
    assert torch.equal(result.firings, firings)
    torch.testing.assert_close(result.reconstruction, reconstruction.detach())
    torch.testing.assert_close(result.l1, l1.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def whole_numbers(n_rows, seed, largest):
    """Draw whole numbers, whose products and small sums are exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (n_rows, 17), generator=generator, dtype=torch.float32)


@pytest.mark.parametrize(("activation", "l0"), [("batchtopk", 6), ("relu", None)])
def test_gradients_in_bf16_are_those_of_automatic_differentiation(activation, l0):
    parameters = random_parameters(dtype=torch.float32)
    parameters.encoder_weight.copy_(whole_numbers(300, 5, 1))
    parameters.encoder_bias.fill_(-9.0)
    parameters.decoder_bias.fill_(1.0)
    inputs = whole_numbers(50, 6, 2)
    recorded = Parameters(*(parameter.clone().requires_grad_() for parameter in parameters))
    reconstruction, l1, firings = loss_terms(recorded, inputs, l0, activation)
    expected = list(torch.autograd.grad(reconstruction + 0.3 * l1, list(recorded)))
    expected[2] = project(expected[2], parameters.decoder_weight)
    with sparse_step(parameters, l0, activation=activation, precision="bf16") as step:
        result = step.take(inputs, l1_coefficient=0.3)
    assert firings.sum() > 50
    assert torch.equal(result.firings, firings)
    torch.testing.assert_close(result.reconstruction, reconstruction.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_codes_chosen_in_bf16_are_exact_and_nearly_the_largest(activation):
    parameters, centered = random_parameters(dtype=torch.float32), random_inputs(dtype=torch.float32)
    threads = _threads.KernelThreads()
    given = {"activation": activation, "l0": 6, "precision": "bf16"}
    kept, _ = _selection.Selection(parameters, threads, **given).select(centered, None)
    exact = centered @ parameters.encoder_weight.T + parameters.encoder_bias
    assert len(kept.values) == kept.counts.sum() == 300
    rows = np.repeat(np.arange(50), kept.counts)
    np.testing.assert_allclose(kept.values, exact.numpy()[rows, kept.latents], rtol=1e-5)
    least = exact.topk(6).values[rows, -1] if activation == "topk" else exact.flatten().topk(300).values[-1]
    assert (torch.from_numpy(kept.values) >= (1 - 2**-6) * least).all()


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu"])
def test_bf16_changes_a_fit_little(rng, activation):
    features = rng.random((3000, 30)) * (rng.random((3000, 30)) < 0.1)
    rows = features @ rng.normal(size=(30, 12)) + 3.0
    sae = SparseAutoencoder(48, activation=activation, l0=4, n_epochs=10, random_state=0, device="cpu")
    fits = [clone(sae).set_params(precision=precision).fit(rows) for precision in ("float32", "bf16")]
    assert (fits[0].encoder_ != fits[1].encoder_).any()
    assert fits[1].explained_variance_ == pytest.approx(fits[0].explained_variance_, abs=0.02)


@pytest.mark.parametrize("codes_at_a_time", [2**22, 7 * 300])
def test_the_cutoff_of_a_batch_does_not_depend_on_the_batches_before(monkeypatch, many_threads, codes_at_a_time):
    """The last cutoff bounds the search for the next one, even if it is far too high or too low."""
    monkeypatch.setattr(_selection, "_PREACTIVATIONS_AT_A_TIME", codes_at_a_time)
    initial = random_parameters(dtype=torch.float32)
    parameters = Parameters(*(parameter.clone() for parameter in initial))
    with sparse_step(parameters, 4, activation="batchtopk") as step:
        for scale in (1.0, 1.01, 100.0, 0.01, 1.0, 0.0):
            for parameter, before in zip(parameters, initial, strict=True):
                parameter.copy_(before)
            inputs = scale * random_inputs(dtype=torch.float32) + parameters.decoder_bias
            expected = find_cutoff(parameters, inputs, 4)
            result = step.take(inputs)
            torch.testing.assert_close(step.cutoff, expected)
            assert int(result.firings.sum()) == 200 or scale == 0.0


def test_fewer_codes_than_wanted_have_no_cutoff():
    parameters = random_parameters()
    parameters.encoder_bias.sub_(12.0)
    with sparse_step(parameters, 100, activation="batchtopk") as step:
        result = step.take(random_inputs())
    assert step.cutoff == 0
    assert 0 < int(result.firings.sum()) < 5000


@pytest.mark.parametrize("n_dense", [1, 50])
def test_many_codes_of_relu_are_left_to_the_dense_step(n_dense):
    """Rows with many codes at the end of a batch count, too."""
    parameters = random_parameters()
    parameters.encoder_bias.sub_(12.0)
    inputs = random_inputs()
    inputs[-n_dense:] *= 100.0
    before = [parameter.clone() for parameter in parameters]
    with sparse_step(parameters, None, activation="relu") as step:
        assert (step.take(inputs) is None) == (n_dense == 50)
    changed = [not torch.equal(one, other) for one, other in zip(parameters, before, strict=True)]
    assert all(changed) if n_dense == 1 else not any(changed)


def auxiliary_loss(parameters, inputs, l0, dead):
    """Compute the auxiliary loss without its weight, for automatic differentiation."""
    with torch.no_grad():
        centered = inputs - parameters.decoder_bias
        codes = torch.relu(centered @ parameters.encoder_weight.T + parameters.encoder_bias)
        largest = codes.topk(l0, dim=1)
        kept = torch.zeros_like(codes).scatter_(1, largest.indices, largest.values)
        error = centered - kept @ parameters.decoder_weight
    codes = torch.relu(centered @ parameters.encoder_weight[dead].T + parameters.encoder_bias[dead])
    largest = codes.topk(min(codes.shape[1], inputs.shape[1] // 2), dim=1)
    kept = torch.zeros_like(codes).scatter(1, largest.indices, largest.values)
    return (error - kept @ parameters.decoder_weight[dead]).square().sum(1).mean()


@pytest.mark.parametrize("n_dead", [1, 5, 120])
def test_gradients_of_dead_latents_are_those_of_automatic_differentiation(monkeypatch, many_threads, n_dead):
    """Some dead latents fire in this very batch, so that both losses have gradients on them."""
    monkeypatch.setattr(_selection, "_PREACTIVATIONS_AT_A_TIME", 7 * 300)
    dead = torch.zeros(300, dtype=torch.bool)
    dead[torch.randperm(300, generator=torch.Generator().manual_seed(3))[:n_dead]] = True
    parameters = Parameters(*(parameter.requires_grad_() for parameter in random_parameters()))
    reconstruction, l1, firings = loss_terms(parameters, random_inputs(), 6)
    loss = reconstruction + 0.7 * auxiliary_loss(parameters, random_inputs(), 6, dead)
    expected = list(torch.autograd.grad(loss, list(parameters)))
    expected[2] = project(expected[2], parameters.decoder_weight.detach())
    parameters = random_parameters()
    with sparse_step(parameters, 6, auxk_coefficient=0.7) as step:
        step.take(random_inputs(seed=2), ~dead)
        for parameter, initial in zip(parameters, random_parameters(), strict=True):
            parameter.copy_(initial)
        result = step.take(random_inputs(), dead)
    assert n_dead < 120 or (firings[dead] > 0).any()
    assert torch.equal(result.firings, firings)
    torch.testing.assert_close(result.reconstruction, reconstruction.detach())
    torch.testing.assert_close(result.l1, l1.detach())
    for gradient, reference in zip(result.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_without_dead_latents_the_auxiliary_loss_changes_no_bit():
    trained = []
    for given, dead in [({}, None), ({"auxk_coefficient": 1.0}, torch.zeros(300, dtype=torch.bool))]:
        trained.append(random_parameters())
        with sparse_step(trained[-1], 6, clip_norm=0.5, **given) as step:
            for seed in range(3):
                step.take(random_inputs(seed=seed), dead)
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_steps_are_those_of_the_textbook_loop(clip_norm, many_threads):
    """Compare with autograd, projection, torch's clipping and Adam, and normalization: idle latents move, too."""
    parameters = [parameter.requires_grad_() for parameter in random_parameters()]
    decoder = parameters[2]
    optimizer = torch.optim.Adam(parameters, lr=3e-3, betas=(0.8, 0.99))
    trained = random_parameters()
    step = sparse_step(trained, 3, clip_norm=clip_norm)
    with step:
        for seed in range(6):
            optimizer.zero_grad()
            loss_terms(Parameters(*parameters), random_inputs(seed=seed), 3)[0].backward()
            decoder.grad = project(decoder.grad, decoder.detach())
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            optimizer.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=1, keepdim=True)
            step.take(random_inputs(seed=seed))
    for ours, reference in zip(trained, parameters, strict=True):
        torch.testing.assert_close(ours, reference.detach(), rtol=1e-9, atol=1e-9)
        for name, moment in optimizer.state[reference].items():
            torch.testing.assert_close(step._optimizer.state[ours][name], moment, rtol=1e-9, atol=1e-12)


# A reset latent has a gradient along its direction, whose projection is rounding, and Adam takes full steps of it.
WITH_RESETS = [
    {**given, "resample_every": 500, **({} if given["activation"] == "relu" else {"auxk_coefficient": 0.0})}
    for given in KINDS[:4]
]


@pytest.mark.parametrize("given", WITH_RESETS + KINDS[:2])
def test_a_fit_is_that_of_the_dense_step_up_to_rounding(activations, topk, monkeypatch, relu_steps, given):
    topk.set_params(n_latents=200, dead_after=200, clip_norm=0.5, **given)
    sparse = clone(topk).fit(activations)
    assert set(relu_steps[2:]) == ({False, True} if given["activation"] == "relu" else {True})
    monkeypatch.setattr(_trainer, "takes_sparse_step", lambda settings, device: False)
    dense = clone(topk).fit(activations)
    assert given["activation"] == "relu" or any(row["n_resampled"] or row["dead"] for row in dense.history_)
    for ours, reference in zip(sparse.history_, dense.history_, strict=True):
        assert ours == pytest.approx(reference, rel=1e-4)
    for name in WEIGHTS:
        np.testing.assert_allclose(getattr(sparse, name), getattr(dense, name), atol=1e-4, err_msg=name)
    assert sparse.l1_coefficient_ == pytest.approx(dense.l1_coefficient_, rel=1e-4)
    if given["activation"] == "batchtopk":
        np.testing.assert_allclose(sparse.threshold_, dense.threshold_, rtol=1e-4)


def test_bits_do_not_depend_on_the_threads_of_the_kernels(monkeypatch, many_threads):
    product = _selection.linear

    def on_one_thread(*tensors):
        with one_thread():
            return product(*tensors)

    monkeypatch.setattr(_selection, "linear", on_one_thread)
    fits = []
    dead = torch.arange(300) % 3 == 0
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        parameters = random_parameters(dtype=torch.float32)
        with sparse_step(parameters, 6, clip_norm=0.5, auxk_coefficient=0.5) as step:
            results = [step.take(random_inputs(100, seed=seed, dtype=torch.float32), dead) for seed in range(5)]
        fits.append([*parameters, *(result.reconstruction for result in results)])
    for fit in fits[1:]:
        assert all(torch.equal(one, other) for one, other in zip(fit, fits[0], strict=True))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 23])
@pytest.mark.parametrize("given", KINDS)
def test_a_stopped_fit_resumes_to_the_same_bits(activations, topk, tmp_path, monkeypatch, relu_steps, given, steps):
    topk.set_params(resample_every=700, **given)
    never_stopped = clone(topk).fit(activations)
    assert set(relu_steps[2:]) == ({False, True} if given["activation"] == "relu" else {True})
    topk.set_params(checkpoint_path=tmp_path / "checkpoint", checkpoint_every=3)
    step = _trainer.take_step

    def stop_after(state, *arguments):
        if state.step == steps:
            raise StoppedError
        step(state, *arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(_trainer, "take_step", stop_after)
        with pytest.raises(StoppedError):
            clone(topk).fit(activations)
    resumed = clone(topk).fit(activations)
    assert_same_weights(resumed, never_stopped)
    assert resumed.history_ == never_stopped.history_


def test_the_moments_of_a_dense_step_are_continued(activations, topk, tmp_path, monkeypatch):
    """Resume a checkpoint of the dense step, which earlier versions wrote."""
    topk.set_params(checkpoint_path=tmp_path / "checkpoint", checkpoint_every=10)
    with monkeypatch.context() as dense:
        dense.setattr(_trainer, "takes_sparse_step", lambda settings, device: False)
        reference = clone(topk).set_params(checkpoint_path=None).fit(activations)
        step = _trainer.take_step

        def stop_after(state, *arguments):
            if state.step == 20:
                raise StoppedError
            step(state, *arguments)

        dense.setattr(_trainer, "take_step", stop_after)
        with pytest.raises(StoppedError):
            clone(topk).fit(activations)
    resumed = clone(topk).fit(activations)
    for name in WEIGHTS:
        np.testing.assert_allclose(getattr(resumed, name), getattr(reference, name), atol=1e-4, err_msg=name)


def test_weights_that_overflow_stop_the_fit(activations, topk):
    topk.set_params(clip_norm=None, normalization=None)
    with pytest.raises(ValueError, match="loss became"):
        topk.partial_fit(activations).partial_fit(np.full_like(activations, 1e30))


def fit_on_threads(sae, activations, n_threads=2):
    """Fit with kernels of any size divided between threads."""
    torch.set_num_threads(n_threads)
    _threads._WORTH_THREADS = 0
    return clone(sae).fit(activations)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_fits_at_the_same_time_are_those_one_after_the_other(activations, topk, backend, many_threads):
    alone = clone(topk).fit(activations)  # compiles, and starts threads
    fits = joblib.Parallel(n_jobs=2, backend=backend)(
        joblib.delayed(fit_on_threads)(topk, activations) for _ in range(4)
    )
    for fit in fits:
        assert_same_weights(fit, alone)


def fit_in_child(queue, sae, activations):
    with one_thread():  # torch's own threads do not survive a fork
        _threads._WORTH_THREADS = 0
        _threads.torch.get_num_threads = lambda: 2
        queue.put(clone(sae).fit(activations).encoder_)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_a_forked_process_fits_after_its_parent(activations, topk):
    with one_thread():
        alone = clone(topk).fit(activations)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=fit_in_child, args=(queue, topk, activations))
    child.start()
    encoder = queue.get(timeout=120)
    child.join()
    np.testing.assert_array_equal(encoder, alone.encoder_)


@pytest.mark.parametrize(
    ("activation", "l0", "device", "is_sparse"),
    [
        ("topk", 12, "cpu", True),
        ("topk", 13, "cpu", False),
        ("topk", 12, "cuda", False),
        ("batchtopk", 12, "cpu", True),
        ("batchtopk", 13, "cpu", False),
        ("relu", None, "cpu", True),
        ("jumprelu", 1, "cpu", False),
    ],
)
def test_few_codes_on_cpus_take_the_sparse_step(activation, l0, device, is_sparse):
    given = dict.fromkeys(_trainer.Settings.__dataclass_fields__)
    settings = _trainer.Settings(**{**given, "activation": activation, "l0": l0, "n_latents": 48})
    assert _cpu_step.takes_sparse_step(settings, torch.device(device)) == is_sparse


@pytest.mark.parametrize("given", KINDS)
def test_kernels_are_compiled_before_the_first_step(activations, topk, given):
    _cpu_step.compile_kernels(given["activation"], given.get("precision", "float32"))
    modules = (_kernels, _selection_kernels)
    compiled = [each for module in modules for each in vars(module).values() if hasattr(each, "signatures")]
    before = [list(kernel.signatures) for kernel in compiled]
    assert before
    topk.set_params(**given).fit(activations)
    assert [list(kernel.signatures) for kernel in compiled] == before


def test_numba_is_not_imported_before_a_fit():
    code = "import sys, geofloor.features; geofloor.features.SparseAutoencoder(4); print('numba' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"
