import numpy as np
import pytest

from geofloor.datasets import load_paper_tables
from geofloor.theory import capacity, critical_width


@pytest.fixture
def paper():
    return load_paper_tables()


@pytest.mark.filterwarnings("ignore::geofloor.theory.NonMonotoneCapacityWarning")
def test_table_7_is_equation_1_except_for_one_entry(paper):
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


def test_table_2_counts_and_normalized_floors(paper):
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


def test_description_names_source_and_license(paper):
    assert "arXiv:2604.04037v2" in paper.DESCR
    assert "CC BY 4.0" in paper.DESCR
