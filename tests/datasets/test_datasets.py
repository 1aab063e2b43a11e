import inspect
import warnings
from pathlib import PurePosixPath

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed

from geofloor.datasets import load_local_corpus, load_paper_tables
from geofloor.datasets._corpus import parse
from geofloor.theory import capacity, critical_width


@pytest.fixture
def paper():
    return load_paper_tables()


@pytest.mark.filterwarnings("ignore::geofloor.theory.NonMonotoneCapacityWarning")
def test_table_7_is_equation_1_but_for_one_entry(paper):
    table = paper.capacity.set_index("alpha").capacity
    printed = table.drop(0.992)
    digits = np.where(printed >= 100, 0, 1)
    assert [round(g, d) for g, d in zip(capacity(printed.index), digits, strict=True)] == printed.tolist()
    assert round(capacity(0.992), 2) == 25.89
    layer_12 = 1 - 218.3 / 28665
    assert round(capacity(layer_12)) == table[0.992] == 27.0


def test_table_1_follows_from_its_counts_within_the_rounding_of_l0(paper):
    sae = paper.sae
    lowest, highest = (1 - (sae.mean_l0 + half) / sae.n_features for half in (0.05, -0.05))
    assert ((capacity(lowest) - 0.005 <= sae.capacity) & (sae.capacity <= capacity(highest) + 0.005)).all()
    alpha = 1 - sae.mean_l0 / sae.n_features
    assert alpha.round(4).tolist() == sae.alpha.tolist()
    assert critical_width(sae.n_features, alpha).round().tolist() == sae.critical_width.tolist()


def test_table_2_counts_and_normalised_floors(paper):
    table = paper.predicted_floor
    assert (table.kept + table.dropped == 28665).all()
    np.testing.assert_allclose(table.normalized, table.floor / 0.0795, atol=1e-3)


def test_table_3_is_raw_loss_per_position_and_squared_temperature(paper):
    table = paper.distillation
    assert (table.raw_kl / 2048).round(3).tolist() == table.kl.tolist()
    assert (table.raw_kl / 2703).round(3).tolist() == table.normalized.tolist()


def test_table_5_mixes_the_fitted_slope_with_the_fixed_baseline(paper):
    table = paper.decomposition
    assert table.observed.tolist() == paper.distillation.kl.tolist()
    np.testing.assert_allclose(table.geometric, 8.97 * paper.predicted_floor.floor, atol=5e-4)
    percent = 100 * (table.observed - 0.586) / table.observed
    assert percent.round(1).tolist()[:-1] == table.percent_geometric.tolist()[:-1]


def test_table_6_mean_change_of_the_narrowest_student(paper):
    accuracy = paper.probes.pivot(index="concept", columns=["model", "width"], values="accuracy_percent")
    assert accuracy.shape == (6, 4)
    change = accuracy["student"][128] - accuracy["teacher"][1024]
    assert change.abs().mean() == pytest.approx(1.27, abs=0.1)  # the text's figure; the table is rounded


def test_students_of_table_8_are_those_of_table_3(paper):
    columns = ["width", "parameters_millions"]
    assert paper.students[columns].equals(paper.distillation[columns])
    assert (paper.students.feed_forward_width == 4 * paper.students.width).all()


def test_toy_sweep_has_each_configuration_once(paper):
    assert len(paper.toy_sweep.drop_duplicates()) == 48
    assert [paper.toy_sweep[name].nunique() for name in ("n_features", "alpha", "teacher_width")] == [3, 4, 4]


def test_every_call_gives_its_own_tables(paper):
    paper.sae.loc[0, "n_features"] = 0
    assert load_paper_tables().sae.n_features[0] == 31006


def test_description_names_source_and_licence(paper):
    assert "arXiv:2604.04037v2" in paper.DESCR
    assert "CC BY 4.0" in paper.DESCR


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
