"""Stores, tokens and parts of sweeps that were damaged or forged load as they were, or not at all."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import damaged, forged, forged_file, read_or_refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXModel, PreTrainedTokenizerFast

from geofloor import ActivationExtractor, ActivationStore
from geofloor._files.sealed import write_sealed
from geofloor._training.checkpoints import sign
from geofloor.language_models import _tokens, token_blocks
from geofloor.toy import toy_sweep

TEXTS = [" ".join(map(str, np.random.default_rng(i).integers(1, 40, size=i % 12))) for i in range(120)]
SEQUENCES = np.random.default_rng(0).integers(1, 40, size=(10, 11))
# How many mutations of each file, and from which seed on; the second is the longer one.
ROUNDS = [(100, 0), pytest.param((400, 1000), marks=pytest.mark.slow)]


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({"<end>": 0, **{str(i): i for i in range(1, 40)}}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


@pytest.fixture(scope="module")
def extractor():
    config = GPTNeoXConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ActivationExtractor(GPTNeoXModel(config).eval(), 1, batch_size=2).fit()


@pytest.fixture(scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tokens, "_TEXTS_AT_ONCE", 3)
        patch.setattr(_tokens, "_SAVE_TOKENS", 40)
        patch.setattr("geofloor.language_models._inputs._LOOK_AHEAD", 2)
        yield


def stopping(values, at):
    yield from values[:at]
    raise StoppedError


# What is attacked: how its files are made and read, and which of them are JSON with a checksum


class Tokens:
    def __init__(self, tokenizer):
        self.arguments = {"tokenizer": tokenizer, "length": 8}

    def make(self, folder):
        token_blocks(TEXTS, path=folder / "tokens.npy", **self.arguments)

    def read(self, folder):
        return np.array(token_blocks(TEXTS, path=folder / "tokens.npy", **self.arguments))


class PartialTokens(Tokens):
    def make(self, folder):
        with pytest.raises(StoppedError):
            token_blocks(stopping(TEXTS, 80), path=folder / "tokens.npy", **self.arguments)


class Store:
    def __init__(self, extractor):
        self.extractor = extractor

    def make(self, folder):
        self.extractor.transform_to_store(SEQUENCES, folder, shard_tokens=16)

    def read(self, folder):
        return ActivationStore(folder)[:]


class StoreAgain(Store):
    def read(self, folder):
        return self.extractor.transform_to_store(SEQUENCES, folder, shard_tokens=16)[:]


class PartialStore(StoreAgain):
    def make(self, folder):
        model, passes = self.extractor.model, []

        def stop(*_):
            passes.append(1)
            if len(passes) == 4:
                raise StoppedError

        handle = model.register_forward_pre_hook(stop)
        with pytest.raises(StoppedError):
            super().make(folder)
        handle.remove()


FILES = [
    (Tokens, "tokens.npy"),
    (Tokens, "tokens.npy.json"),
    (PartialTokens, "tokens.npy.part"),
    (PartialTokens, "tokens.npy.json"),
    (Store, "manifest.json"),
    (Store, "shard-00001.npy"),
    (StoreAgain, "manifest.json"),
    (StoreAgain, "shard-00001.npy"),
    (PartialStore, "manifest.partial.json"),
    (PartialStore, "shard-00001.npy"),
]


def attacks(kind, name, rounds, request, tmp_path, mutate):
    """Read mutated files; what loads must be what a read of the files as they were gives, to the bit."""
    fixture = "tokenizer" if issubclass(kind, Tokens) else "extractor"
    attacked = kind(request.getfixturevalue(fixture))
    folder = tmp_path / "made"
    folder.mkdir()
    attacked.make(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    right = attacked.read(folder)
    n_mutations, seed = rounds
    n_refused = 0
    for i in range(seed, seed + n_mutations):
        attacked_folder = tmp_path / str(i) / "files"
        attacked_folder.mkdir(parents=True)
        for other, content in files.items():
            (attacked_folder / other).write_bytes(content)
        label = mutate(attacked_folder / name, files[name], np.random.default_rng(i))
        found = read_or_refusal(lambda folder=attacked_folder: attacked.read(folder), attacked_folder, label=label)
        n_refused += found is None
        if found is not None:
            np.testing.assert_array_equal(found, right, strict=True, err_msg=label)
    return n_refused / n_mutations


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_damaged_files_load_as_they_were_or_not_at_all(kind, name, rounds, request, tmp_path, small_pieces):
    def damage(file, content, rng):
        label, changed = damaged(content, rng)
        file.write_bytes(changed)
        return label

    assert attacks(kind, name, rounds, request, tmp_path, damage) > 0.5


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(("kind", "name"), [case for case in FILES if case[1].endswith(".json")])
def test_forged_files_load_as_they_were_or_not_at_all(kind, name, rounds, request, tmp_path, small_pieces):
    def forge(file, content, rng):
        document = json.loads(content)
        del document["checksum"]
        label, changed = forged(document, rng)
        try:
            write_sealed(file, changed)
        except ValueError:  # infinite numbers have no checksum
            file.write_text(json.dumps({**changed, "checksum": "0" * 64}))
        return label

    assert attacks(kind, name, rounds, request, tmp_path, forge) > 0.5


# Parts of sweeps

SWEEP = {"n_steps": 20, "max_rounds": 1, "n_eval_samples": 256, "n_seeds": 2, "device": "cpu"}


def read_sweep(folder):
    return toy_sweep(4, [1, 2], 0.9, teacher_widths=None, **SWEEP, models_per_batch=2, checkpoint_dir=folder)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("forge", [False, True])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_parts_of_sweeps_load_as_they_were_or_not_at_all(forge, rounds, tmp_path):
    folder = tmp_path / "made"
    right = read_sweep(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    name = sorted(files)[0]
    n_mutations, seed = rounds
    n_refused = 0
    for i in range(seed, seed + n_mutations):
        attacked = tmp_path / str(i) / "parts"
        attacked.mkdir(parents=True)
        for other, content in files.items():
            (attacked / other).write_bytes(content)
        rng = np.random.default_rng(i)
        label, content = forged_file(files[name], rng, sign) if forge else damaged(files[name], rng)
        (attacked / name).write_bytes(content)
        found = read_or_refusal(lambda folder=attacked: read_sweep(folder), attacked, label=label)
        n_refused += found is None
        if found is not None and not forge:
            pd.testing.assert_frame_equal(found, right, check_exact=True, obj=label)
        if found is not None and forge:  # values that a model could have can't be told from those of this one
            assert (found.dtypes == right.dtypes).all(), label
            numbers = found.to_numpy(dtype=float)
            assert np.isfinite(numbers).all(), label
            assert (numbers >= 0).all(), label
            assert (found.kept <= 4).all(), label
    assert n_refused > 0.5 * n_mutations
