import pytest

from geofloor.datasets._pairs import Example, PairPool, bunch_of_pairs


def test_texts_with_the_same_start_count_once():
    pool = PairPool(same_package=False, n_pairs=5)
    for text in ("a" * 60 + " first", "A" * 60 + ", other"):
        pool.add(Example(text, "file", 1), "")
    for start in "bc":
        pool.add(Example(start * 66, "file", 0), "")
    assert [(positive.text[:1], negative.text[:1]) for positive, negative in pool.pairs] == [("a", "b")]


def test_pairs_have_similar_lengths_and_one_package():
    pool = PairPool(same_package=True, n_pairs=5)
    pool.add(Example("a" * 100, "file", 1), "numpy")
    pool.add(Example("b" * 100, "file", 0), "scipy")
    pool.add(Example("c" * 300, "file", 0), "numpy")
    assert not pool.pairs
    pool.add(Example("d" * 100, "file", 0), "numpy")
    assert [each.text[0] for each in pool.pairs[0]] == ["a", "d"]


def test_a_pool_that_is_not_full_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"'x' has 0 examples per class here; .* or read more rows\."):
        bunch_of_pairs({"x": PairPool(False, 2)}, {"x": ""}, 2, "read more rows")
