import inspect
import warnings
from pathlib import PurePosixPath

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed

from geofloor.datasets import load_local_corpus
from geofloor.datasets._corpus import parse


def test_corpus_splits_are_disjoint_folders():
    train, test = ({text.name for text in load_local_corpus(s, packages=["joblib"])} for s in ("train", "test"))
    assert train
    assert test
    assert not train & test
    folders = [{PurePosixPath(name).parent for name in names} - {PurePosixPath("joblib")} for names in (train, test)]
    assert not folders[0] & folders[1]


def test_corpus_order_is_fixed_and_independent_of_the_packages_order():
    packages = ["joblib", "tqdm"]
    first = [text.name for text in load_local_corpus(packages=packages)]
    assert [text.name for text in load_local_corpus(packages=packages[::-1])] == first
    assert [name for name in first if name.startswith("joblib/")] == [
        text.name for text in load_local_corpus(packages=["joblib"])
    ]
    assert first != sorted(first)


def test_corpus_reads_no_further_file_once_a_package_has_its_characters():
    limit = 50_000
    texts = list(load_local_corpus(packages=["joblib"], kinds=["source"], max_characters_per_package=limit))
    lengths = np.cumsum([len(text.text) for text in texts])
    assert lengths[-1] >= limit
    assert lengths[-2] < limit


def test_corpus_docstrings_are_the_docstrings_alone():
    texts = {text.name: text.text for text in load_local_corpus(packages=["joblib"], kinds=["docstrings"])}
    found = [text for text in texts.values() if inspect.getdoc(joblib.Parallel) in text]
    assert len(found) == 1
    assert "def __init__" not in found[0]


def test_corpus_holds_source_as_it_stands():
    texts = {text.name: text for text in load_local_corpus(packages=["joblib"], kinds=["source"])}
    path = inspect.getsourcefile(joblib.Parallel)
    with open(path, encoding="utf-8") as file:
        assert texts["joblib/parallel.py"].text == file.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split='validation'"),
        ({"kinds": ["comments"]}, "comments"),
        ({"kinds": []}, "kinds"),
        ({"kinds": "source"}, "kinds='source' must be a list of some of 'source', 'docstrings'"),
        ({"packages": "joblib"}, "packages='joblib' must be a list of names"),
        ({"packages": [3]}, r"packages=\[3\] must be a list of names"),
        ({"max_characters_per_package": "9"}, "max_characters_per_package='9' must be a whole number"),
        ({"split": 3}, "split=3"),
        ({"packages": ["no_such_package"]}, "no_such_package"),
        ({"packages": ["os.path"]}, "os.path"),
    ],
)
def test_corpus_refuses_unknown_names_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_local_corpus(**arguments)


def test_parsing_in_threads_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    trees = Parallel(n_jobs=8, backend="threading")(delayed(parse)("x = '\\d'") for _ in range(400))
    assert warnings.filters == before
    assert [len(tree.body) for tree in trees] == [1] * 400
    assert parse("x = (").body == []
