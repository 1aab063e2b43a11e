import numpy as np
import pytest

from geofloor._training import rows
from geofloor._training.rows import StreamRows
from geofloor._training.shared import SharedRows, SharedStream, pick

DATA = np.arange(2000, dtype=np.float32).reshape(1000, 2)


def parts(stop=1000):
    """Yield rows in batches of 1 to 9."""
    start, size = 0, 1
    while start < stop:
        yield DATA[start : start + size]
        start, size = start + size, size % 9 + 1


def take_turns(shared, several):
    """Read all, always the one that has read the fewest rows; return their rows and the most rows held."""
    found, most = {reader: [] for reader, _ in several}, 0
    while several:
        turn = min(several, key=lambda pair: pair[0].position)
        batch = next(turn[1], None)
        if batch is None:
            turn[0].close()
            several.remove(turn)
        else:
            found[turn[0]].append(batch)
            most = max(most, shared.n_held)
    return list(found.values()), most


@pytest.mark.parametrize("sizes", [(1,), (7, 30, 64), (50, 50)])
def test_each_loop_gets_the_batches_of_a_stream_of_its_own_and_few_rows_are_held(monkeypatch, sizes):
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 20)
    shared = SharedStream(parts())
    readers = [shared.reader() for _ in sizes]
    sampler = shared.reader()
    sampled = StreamRows(sampler)
    sampler.close()
    own = [SharedRows(sampled, reader) for reader in readers]
    for each in own:
        each.hold_out(5)
    batches = [each.batches(size, 1, 0, 0) for each, size in zip(own, sizes, strict=True)]
    found, most = take_turns(shared, list(zip(readers, batches, strict=True)))
    assert most <= max(20 + 9, max(sizes) + 9)
    assert shared.n_held == 0
    for size, got in zip(sizes, found, strict=True):
        alone = StreamRows(parts())
        alone.hold_out(5)
        for one, other in zip(got, alone.batches(size, 1, 0, 0), strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_that_no_loop_needs_are_not_held(monkeypatch):
    monkeypatch.setattr(rows, "_SAMPLE_ROWS", 20)
    shared = SharedStream(parts())
    readers = [shared.reader() for _ in range(2)]
    sampled = StreamRows(shared.reader())
    shared.leave(shared._readers[-1])
    starts = zip(readers, (50, 80), strict=True)
    several = [(reader, SharedRows(sampled, reader).batches(10, 1, step, 0)) for reader, step in starts]
    (first, second), most = take_turns(shared, several)
    assert most <= 10 + 9
    np.testing.assert_array_equal(np.concatenate(first), DATA[500:])
    np.testing.assert_array_equal(np.concatenate(second), DATA[800:])


def test_dicts_must_have_the_keys_and_equal_lengths():
    assert list(pick({1: DATA, 2: DATA, 3: DATA}, [2])) == [2]
    with pytest.raises(ValueError, match=r"X has no 4, a key of autoencoders; its keys are \[1\]"):
        pick({1: DATA}, [4])
    with pytest.raises(ValueError, match="give dicts with these keys, or autoencoders as a list"):
        pick(DATA, [1])
    with pytest.raises(ValueError, match="give autoencoders as a dict by key"):
        pick({1: DATA}, None)
    with pytest.raises(ValueError, match=r"\{1: 1000, 2: 3\} rows by key"):
        pick({1: DATA, 2: DATA[:3]}, [1, 2])
