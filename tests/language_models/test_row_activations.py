import numpy as np
import pytest
from small_models import BLOCKS, MODEL, N_VOCABULARY, reference

from geofloor import ActivationExtractor
from geofloor.language_models._row_activations import row_activations
from geofloor.language_models._token_rows import TokenRows

LENGTHS = np.array([11, 4, 1, 2, 11, 5, 1, 9, 3, 6])
PADDED = np.where(np.arange(11) < LENGTHS[:, np.newaxis], BLOCKS, 0)


def stream(tokens, skip_first, pad_token_id=None):
    extractor = ActivationExtractor(MODEL, 1, skip_first=skip_first, max_length=None, batch_size=3).fit()
    rows = TokenRows(tokens, "tokens", N_VOCABULARY, None, pad_token_id)
    return np.concatenate(list(row_activations(extractor, rows, skip_first=skip_first, batch_size=3)))


@pytest.mark.parametrize("skip_first", [0, 1, 3])
def test_activations_leave_out_padding_and_skipped_positions(skip_first):
    expected = [reference(MODEL, row.tolist(), 1, skip_first) for row in BLOCKS]
    np.testing.assert_allclose(stream(BLOCKS, skip_first), np.concatenate(expected), atol=1e-5)
    expected = [reference(MODEL, row[:n].tolist(), 1, skip_first) for row, n in zip(PADDED, LENGTHS, strict=True)]
    np.testing.assert_allclose(stream(PADDED, skip_first, 0), np.concatenate(expected), atol=1e-5)


def test_sequences_without_a_position_left_are_refused():
    short = np.where(np.arange(11) < 2, BLOCKS, 0)
    with pytest.raises(ValueError, match="skip_first=2 leaves nothing of sequences of 2 tokens; lower it"):
        stream(short, 2, pad_token_id=0)
