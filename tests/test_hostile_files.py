"""Files that were damaged or forged: refused by name, or as good as the original; nothing else is touched."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from hostile import damaged, forged_file, pack_tensors, read_or_refusal, unpack
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import DistilledStudent, SparseAutoencoder
from geofloor._training.checkpoints import sign
from geofloor._training.devices import one_thread
from geofloor.features import _trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")
N_VOCABULARY = 16
SAE = {"n_latents": 6, "batch_size": 16, "n_epochs": 2, "random_state": 0, "device": "cpu", "checkpoint_every": 4}
STUDENT = {"n_steps": 6, "warmup_steps": 1, "batch_size": 4, "eval_every": 2, "device": "cpu", "random_state": 0}
KINDS = ("autoencoder", "autoencoder checkpoint", "student", "student checkpoint")


class StoppedError(Exception):
    pass


def new_teacher():
    config = GPTNeoXConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


def stopped(fit, owner, method, steps):
    """Fit until one step more is asked for."""
    step, done = getattr(owner, method), []

    def act(*arguments):
        if len(done) == steps:
            raise StoppedError
        done.append(0)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, act)
        with pytest.raises(StoppedError):
            fit()


class Case:
    """A kind of file: its content, how it is read, and what a reader of the original gives."""

    def __init__(self, kind, folder):
        from geofloor.students._engine import Distillation

        rng = np.random.default_rng(0)
        self.path = folder / "victim.safetensors"
        self.X = rng.normal(size=(64, 4)).astype(np.float32)
        self.tokens = rng.integers(N_VOCABULARY, size=(20, 6))
        self.teacher = new_teacher()
        sae = SparseAutoencoder(**SAE)
        student = DistilledStudent(self.teacher, 4, **STUDENT)
        if kind == "autoencoder":
            sae.fit(self.X).save(self.path)
            self.read = lambda: SparseAutoencoder.load(self.path, device="cpu")
        elif kind == "student":
            student.fit(self.tokens).save(self.path)
            self.read = lambda: DistilledStudent.load(self.path, device="cpu")
        elif kind == "autoencoder checkpoint":
            sae.set_params(checkpoint_path=self.path)
            stopped(lambda: sae.fit(self.X), _trainer, "take_step", 5)
            self.read = lambda: SparseAutoencoder(**SAE, checkpoint_path=self.path).fit(self.X)
        else:
            student.set_params(checkpoint_path=self.path, checkpoint_every=3)
            stopped(lambda: student.fit(self.tokens), Distillation, "train_step", 4)
            self.read = lambda: DistilledStudent(
                self.teacher, 4, **STUDENT, checkpoint_path=self.path, checkpoint_every=3
            ).fit(self.tokens)
        # Weights of 3e38 are finite, and a checkpoint of them trains to a loss that is not.
        self.or_says = ("The KL of the student of width 4 became", "The loss became") if "checkpoint" in kind else ()
        self.content = self.path.read_bytes()
        self.original = self.behavior(self.read())

    def behavior(self, estimator):
        """Everything that can be seen of it, computed, with finite numbers and shapes that fit."""
        if isinstance(estimator, SparseAutoencoder):
            assert estimator.encoder_.shape == estimator.decoder_.shape == (6, 4)
            np.testing.assert_allclose(np.linalg.norm(estimator.decoder_, axis=1), 1, rtol=1e-5)
            computed = [estimator.transform(self.X).toarray(), estimator.score(self.X)]
            names = [name for name in vars(estimator) if name.endswith("_")]
        else:
            tokens = self.tokens
            if estimator.pad_token_id is not None:  # or some would have padding before a token
                tokens = np.where(tokens == estimator.pad_token_id, N_VOCABULARY - 1 - tokens, tokens)
            computed = [estimator.predict_log_proba(tokens), estimator.transform(tokens)]
            names = ["floor_", "floor_error_", "history_", "converged_", "n_steps_", "n_parameters_"]
        assert all(np.isfinite(each).all() for each in computed)
        parameters = {k: v for k, v in estimator.get_params().items() if k not in ("teacher", "checkpoint_path")}
        return {name: getattr(estimator, name) for name in names} | {"parameters": parameters, "computed": computed}

    def try_content(self, content, label):
        """What the reader gives of a content, or None if it refuses it."""
        self.path.write_bytes(content)
        found = read_or_refusal(self.read, self.path, label=label, or_says=self.or_says)
        return None if found is None else self.behavior(found)


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with one_thread():
        yield Case(request.param, folder)
    shutil.rmtree(folder)


def assert_equal(a, b, label):
    np.testing.assert_equal(a, b, err_msg=label)


def damage_all(case, n, seed):
    rng = np.random.default_rng(seed)
    for index in range(n):
        label, content = damaged(case.content, rng)
        found = case.try_content(content, f"{index}: {label}")
        if found is not None:
            assert_equal(found, case.original, f"{index}: {label}")


def forge_all(case, n, seed):
    rng = np.random.default_rng(seed)
    refused = 0
    for index in range(n):
        label, content = forged_file(case.content, rng, sign)
        refused += case.try_content(content, f"{index}: {label}") is None
    return refused


def test_damaged_files_are_refused_or_read_as_they_were(case):
    damage_all(case, 65, seed=1)


def test_forged_files_are_refused_or_consistent(case):
    assert forge_all(case, 65, seed=2) > 40


# Crafted files, signed


def signed(content, change):
    """A file whose JSON or tensors `change` changes in place, with a checksum of its own."""
    tensors, header = unpack(content)
    document = json.loads(header["geofloor"])
    del document["sha256"]
    change(document, tensors)
    return pack_tensors(tensors, sign(tensors, json.dumps(document)))


@pytest.fixture(scope="module")
def student_file(tmp_path_factory):
    with one_thread():
        yield Case("student", tmp_path_factory.mktemp("student"))


def test_a_students_file_runs_no_code_of_a_repository_that_it_names(student_file, tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (evil / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    path = student_file.path
    path.write_bytes(signed(student_file.content, lambda document, _: document["metadata"].update(teacher=str(evil))))
    loaded = DistilledStudent.load(path, device="cpu")
    for use in (loaded.score, loaded.fit):
        with pytest.raises(ValueError, match=rf"names the teacher '{evil}', which is not loaded from"):
            use(student_file.tokens)
    acts = {
        "model_kwargs": {"trust_remote_code": True},
        "checkpoint_path": str(tmp_path / "written"),
        "teacher": str(evil),
        "device": "cpu",
    }
    for name, value in acts.items():
        change = {name: value}
        path.write_bytes(signed(student_file.content, lambda d, _, new=change: d["metadata"]["parameters"].update(new)))
        with pytest.raises(ValueError, match=rf"victim.*unknown \['{name}'\]"):
            DistilledStudent.load(path, teacher=student_file.teacher, device="cpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil/repo--code.M"}}, r"unknown \['auto_map'\]"),
        ({"attn_implementation": "evil/kernel"}, r"unknown \['attn_implementation'\]"),
        ({"_attn_implementation_internal": "evil/kernel"}, "unknown"),
        ({"_name_or_path": "evil/repo"}, "unknown"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unknown"),
        ({"to_dict": 1}, r"unknown \['to_dict'\]"),
        ({"model_type": "clip"}, "model_type='clip' is no causal language model"),
        ({"model_type": "evil"}, "model_type='evil' is no causal language model"),
        ({"model_type": None}, "model_type=None is no text"),
        ({"vocab_size": 10**8}, r"embed_in.weight is .* of shape \(16, 4\), not .* \(100000000, 4\)"),
        ({"hidden_size": 2**62}, "transformers makes no model|tensor"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, with"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e9}}, "buffers of"),
        ({"layer_norm_eps": -5.0}, "not finite"),
    ],
)
def test_a_students_configuration_is_plain_and_that_of_its_weights(student_file, change, message):
    student_file.path.write_bytes(
        signed(student_file.content, lambda document, _: document["metadata"]["config"].update(change))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"(?s)victim\.safetensors' can't be used: .*({message})"):
        DistilledStudent.load(student_file.path, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.fixture(scope="module")
def sae_file(tmp_path_factory):
    with one_thread():
        yield Case("autoencoder", tmp_path_factory.mktemp("autoencoder"))


def put(name, value):
    return lambda document, tensors: tensors.update({name: value(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("decoder_bias", lambda t: t[:1].clone()), r"decoder_bias is .* of shape \(1,\), not .* \(4,\)"),
        (put("encoder_bias", lambda t: t[:1].clone()), "encoder_bias"),
        (put("encoder", lambda t: t * float("nan")), "encoder is not finite"),
        (put("encoder", lambda t: t.bfloat16()), "encoder is torch.bfloat16"),
        (put("decoder", lambda t: 2 * t), "not of unit norm"),
        (lambda document, tensors: tensors.clear(), "lacks"),
        (lambda document, tensors: document["metadata"]["fitted"].update(transform=1), r"unknown \['transform'\]"),
        (lambda document, tensors: document["metadata"]["fitted"].update(scale_=0.0), "scale_=0.0"),
        (lambda document, tensors: document["metadata"]["fitted"].update(scale_=float("inf")), "Infinity"),
        (lambda document, tensors: document["metadata"]["fitted"].pop("history_"), "history_"),
        (lambda document, tensors: document["metadata"]["parameters"].pop("betas"), "betas"),
        (lambda document, tensors: document["metadata"]["parameters"].update(new_in_2030=1), "new_in_2030"),
        (lambda document, tensors: document["metadata"]["parameters"].update(batch_size=0), "batch_size=0"),
        (lambda document, tensors: document.update(version=99), "has version 99"),
        (lambda document, tensors: document.update(kind=["a"]), "holds a"),
        (lambda document, tensors: document.pop("metadata"), "not the fields"),
    ],
)
def test_an_autoencoders_file_is_checked_beyond_its_checksum(sae_file, change, message):
    sae_file.path.write_bytes(signed(sae_file.content, change))
    with pytest.raises(ValueError, match=rf"victim\.safetensors.*{message}"):
        SparseAutoencoder.load(sae_file.path)


def test_json_of_any_depth_and_size_is_refused_by_name(sae_file):
    tensors, _ = unpack(sae_file.content)
    for content in ("{" + '"a":[' * 100_000, '{"a": 1e999}', '{"a": ' + "9" * 10_000 + "}", '{"a": NaN}', '{"a'):
        sae_file.path.write_bytes(pack_tensors(tensors, sign(tensors, content)))
        with pytest.raises(ValueError, match=r"victim\.safetensors.*JSON"):
            SparseAutoencoder.load(sae_file.path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("autoencoder checkpoint", lambda d, t: t.pop("optimizer.0.exp_avg"), "optimizer.0.exp_avg"),
        ("autoencoder checkpoint", lambda d, t: d["metadata"].update(step=10**9), "step=1000000000"),
        ("autoencoder checkpoint", lambda d, t: d["metadata"].update(step=5), "step"),
        ("autoencoder checkpoint", put("optimizer.1.exp_avg_sq", lambda t: -1 - t), "is negative"),
        ("student checkpoint", lambda d, t: t.pop("optimizer-0.0.exp_avg"), "optimizer-0.0.exp_avg"),
        ("student checkpoint", lambda d, t: d["metadata"].update(step=10**9), "step=1000000000"),
        ("student checkpoint", lambda d, t: d["metadata"].update(step=4), "step"),
        ("student checkpoint", lambda d, t: d["metadata"].update(kl_steps=0), "history is not that of 3 steps"),
        ("student checkpoint", lambda d, t: d["metadata"]["settings"].update(later=1), "other values of later"),
    ],
)
def test_a_checkpoint_is_checked_beyond_its_checksum(kind, change, message, tmp_path):
    case = Case(kind, tmp_path)
    case.path.write_bytes(signed(case.content, change))
    with pytest.raises(ValueError, match=rf"victim\.safetensors.*{message}"):
        case.read()


@pytest.mark.parametrize(
    ("kind", "owner", "steps"),
    [("autoencoder checkpoint", SparseAutoencoder, 4), ("student checkpoint", DistilledStudent, 3)],
)
def test_steps_of_a_checkpoint_are_read_or_it_is_refused(kind, owner, steps, tmp_path):
    case = Case(kind, tmp_path)

    def steps_of(content, label):
        case.path.write_bytes(content)
        return read_or_refusal(lambda: owner.steps_done(case.path), case.path, label=label)

    assert steps_of(case.content, "none") == steps
    rng = np.random.default_rng(3)
    for _ in range(40):
        label, content = damaged(case.content, rng)
        assert steps_of(content, label) in (None, steps), label
    for odd in (0, -1, True, 2.0, "3", None, 2**63, [3], {}):
        content = signed(case.content, lambda d, t, odd=odd: d["metadata"].update(step=odd))
        assert steps_of(content, f"step={odd!r}") is None
    assert steps_of(signed(case.content, lambda d, t: d["metadata"].pop("step")), "no step") is None
    other = {SparseAutoencoder: DistilledStudent, DistilledStudent: SparseAutoencoder}[owner]
    case.path.write_bytes(case.content)
    with pytest.raises(ValueError, match="victim.safetensors' holds a geofloor"):
        other.steps_done(case.path)
    with pytest.raises(FileNotFoundError):
        owner.steps_done(tmp_path)
    with pytest.raises(TypeError, match="checkpoint_path=3"):
        owner.steps_done(3)
    assert owner.steps_done(tmp_path / "none") == 0


@pytest.mark.slow
def test_many_hostile_files(case):
    damage_all(case, 300, seed=3)
    forge_all(case, 600, seed=4)
