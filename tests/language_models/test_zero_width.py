import warnings

import numpy as np
import pytest
import torch
from small_students import N_VOCABULARY, Padded, new_teacher, plain_kl

from geofloor.language_models import zero_width_kl


@pytest.fixture(scope="module")
def teacher():
    return new_teacher()


@pytest.fixture(scope="module")
def teacher_path(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    teacher.save_pretrained(path)
    return path


@pytest.fixture
def tokens(rng):
    return rng.integers(N_VOCABULARY, size=(60, 12))


def test_padding_with_the_end_token_is_noticed(teacher, tokens):
    end = teacher.config.eos_token_id
    tokens = np.where(tokens == end, end + 1, tokens)
    padded = tokens.copy()
    padded[:, 9:] = end
    with pytest.warns(
        UserWarning,
        match=f"tokens: .* of {len(tokens)} sequences begin or end with a run of token {end}.*set pad_token_id={end}",
    ):
        zero_width_kl(teacher, padded, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero_width_kl(teacher, padded, pad_token_id=end, device="cpu")
        single = tokens.copy()
        single[:, -1] = single[:, 4] = end  # as between documents
        zero_width_kl(teacher, single, device="cpu")


def test_padding_the_vocabulary_does_not_change_the_loss_of_width_zero(teacher, tokens):
    plain = zero_width_kl(teacher, tokens, device="cpu")
    assert zero_width_kl(Padded(teacher, 5), tokens, device="cpu") == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("pad", [None, 63])
def test_width_zero_gives_the_best_single_distribution(teacher, teacher_path, tokens, pad, rng):
    tokens = np.minimum(tokens, 62)
    if pad is not None:
        tokens[:20, 8:] = pad
    with torch.no_grad():
        logits = teacher(torch.from_numpy(tokens)).logits[torch.from_numpy(tokens != 63)].double()
    found = zero_width_kl(teacher_path, tokens, batch_size=7, pad_token_id=pad, device="cpu")
    best = torch.softmax(logits / 2.0, -1).mean(0).log() * 2.0
    assert found == pytest.approx(float(plain_kl(best.expand_as(logits), logits, None, 2.0)), rel=1e-5)
    for _ in range(5):
        other = best + 0.01 * torch.from_numpy(rng.standard_normal(64))
        assert float(plain_kl(other.expand_as(logits), logits, None, 2.0)) > found
    assert zero_width_kl(teacher, tokens, temperature=1.0, pad_token_id=pad, device="cpu") > found
    with pytest.raises(ValueError, match="temperature=0"):
        zero_width_kl(teacher, tokens, temperature=0.0)
