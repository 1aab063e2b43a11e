import numpy as np
import pytest

from geofloor.language_models._token_rows import Batch, TokenRows


def test_a_share_without_rows_counts_for_nothing_and_keeps_a_row():
    batch = Batch(np.arange(12).reshape(3, 4), None)
    share = batch.share(slice(3, 3))
    assert share.ids.shape == (1, 4)
    assert share.n_positions == share.n_labels == 0
    np.testing.assert_array_equal(batch.share(slice(1, 3)).ids, batch.ids[1:])
    padded = Batch(batch.ids, np.array([[True] * 4, [True, True, False, False], [True] * 4]))
    assert (padded.n_positions, padded.n_labels) == (10, 7)
    assert [part.n_positions for part in padded.split(2)] == [4, 6]


def test_padding_is_masked_at_the_end_only():
    rows = TokenRows([[1, 2, 9], [3, 9, 9]], "tokens", 10, None, 9)
    batch = rows.take(np.array([1, 0]))
    np.testing.assert_array_equal(batch.mask, [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(batch.ids, [[3, 0, 0], [1, 2, 0]])
    with pytest.raises(ValueError, match=r"tokens has padding \(pad_token_id=9\) before a token"):
        TokenRows([[9, 1, 2]], "tokens", 10, None, 9).take(np.array([0]))
