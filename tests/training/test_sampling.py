import numpy as np

from geofloor._training.sampling import epoch_rows, steps_per_epoch


def test_each_epoch_is_a_new_permutation_in_whole_batches():
    steps = steps_per_epoch(23, 5)
    assert steps == 4
    epochs = [[epoch_rows(23, 5, epoch * steps + i, seed=1) for i in range(steps)] for epoch in range(2)]
    for epoch in epochs:
        rows = np.concatenate(epoch)
        assert len(set(rows)) == 20
        assert set(rows) <= set(range(23))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epoch_rows(23, 5, 6, seed=1), epochs[1][2])  # from the step alone
    assert epoch_rows(3, 5, 0, seed=1).tolist() == [0, 1, 2]
