import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geofloor._training import rows
from geofloor._training.rows import ArrayRows, StreamRows


def test_streams_lose_and_repeat_nothing_but_the_rest(monkeypatch):
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 5)
    pieces = [np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 100 * i for i, n in enumerate([3, 1, 8, 2])]
    joined = np.concatenate(pieces)
    stream = StreamRows(pieces)
    batches = list(stream.batches(5, n_epochs=2, first_step=0, seed=0))
    assert 2 * stream.steps_per_epoch(5) == len(batches) == 4
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([joined[:10]] * 2))
    later = list(StreamRows(iter(pieces)).batches(5, n_epochs=1, first_step=1, seed=0))
    np.testing.assert_array_equal(np.concatenate(later), joined[5:10])
    assert len(next(StreamRows(pieces).batches(50, n_epochs=1, first_step=0, seed=0))) == 14
    np.testing.assert_array_equal(stream.hold_out(4), joined[:4])
    np.testing.assert_array_equal(next(stream.batches(5, n_epochs=1, first_step=0, seed=0)), joined[4:9])


@given(cuts=st.lists(st.integers(0, 40), max_size=6), held_out=st.integers(0, 5), batch_size=st.integers(1, 50))
def test_batches_of_a_stream_do_not_depend_on_its_cuts(cuts, held_out, batch_size):
    data = np.arange(80, dtype=np.float32).reshape(40, 2)
    stream = StreamRows(piece for piece in np.split(data, sorted(cuts)) if len(piece))
    np.testing.assert_array_equal(stream.hold_out(held_out), data[:held_out])
    found = np.concatenate(list(stream.batches(batch_size, n_epochs=1, first_step=0, seed=0)))
    n_kept = max((40 - held_out) // batch_size, 1) * batch_size
    np.testing.assert_array_equal(found, data[held_out:][:n_kept])


def test_a_fingerprint_is_of_every_row():
    data = np.arange(80, dtype=np.float32).reshape(40, 2)
    changed = data.copy()
    changed[17, 1] += 1e-3
    assert ArrayRows(data).fingerprint == ArrayRows(data.astype(np.float64)).fingerprint
    assert ArrayRows(data).fingerprint != ArrayRows(changed).fingerprint
