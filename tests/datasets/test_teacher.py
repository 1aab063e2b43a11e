"""The embedded teacher, and the script that trains it."""

import json
import shutil

import numpy as np
import pytest
import torch

from geofloor.datasets import load_local_corpus, load_teacher, train_teacher
from geofloor.language_models import token_blocks


def test_the_embedded_teacher_is_small_and_holds_no_pickle():
    path = load_teacher().path
    assert sum(file.stat().st_size for file in path.iterdir()) <= 6_000_000
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_the_embedded_teacher_predicts_held_out_text():
    teacher = load_teacher()
    texts = (document.text for document in load_local_corpus("test", packages=["sklearn"]))
    blocks = token_blocks(texts, teacher.tokenizer, length=256, max_blocks=64)
    loss = train_teacher.held_out_loss(teacher.model, blocks, batch=16)
    # On other versions of the packages, hence the margin.
    assert loss == pytest.approx(teacher.training["held_out_loss_nats"], abs=0.6)
    assert train_teacher.unigram_loss(blocks, blocks, len(teacher.tokenizer)) > 2 * loss


def test_its_tokenizer_loses_nothing():
    tokenizer = load_teacher().tokenizer
    text = 'def f(x):\n\treturn "é → 日本"  # ok\r\n'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


class StoppedError(Exception):
    pass


def test_training_goes_on_after_a_stop_to_the_same_weights(tmp_path, monkeypatch):
    def arguments(folder):
        sizes = "--width 16 --layers 1 --heads 2 --vocabulary 300 --length 16 --batch 4 --steps 9 --warmup 2"
        options = f"--checkpoint-every 3 --threads {torch.get_num_threads()} --max-characters-per-package 4000"
        return [*sizes.split(), *options.split(), "--output", str(folder)]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_teacher.main(arguments(whole))
    stopped.mkdir()
    for name in ("tokens-train.npy", "tokens-test.npy", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, stopped)
    loss = train_teacher.next_token_loss
    calls = iter(range(1000))

    def stop_on_the_way(model, tokens):
        if torch.is_grad_enabled() and next(calls) == 5:
            raise StoppedError
        return loss(model, tokens)

    monkeypatch.setattr(train_teacher, "next_token_loss", stop_on_the_way)
    with pytest.raises(StoppedError):
        train_teacher.main(arguments(stopped))
    assert (stopped / "checkpoint.safetensors").exists()
    train_teacher.main(arguments(stopped))
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    reports = [json.loads((folder / "training.json").read_text()) for folder in (whole, stopped)]
    assert reports[0] == reports[1]
    assert np.isfinite(reports[0]["held_out_loss_nats"])
    assert [row["step"] for row in reports[0]["history"]] == [3, 6, 9]

    with pytest.raises(SystemExit, match="made with other settings"):
        train_teacher.main([*arguments(stopped), "--seed", "1"])
