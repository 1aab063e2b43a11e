import json
import shutil

import numpy as np
import pytest
import torch

from geofloor.datasets import train_teacher


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
