import numpy as np
import pytest

from geofloor.datasets import load_paper_tables, load_published_losses


@pytest.fixture(scope="module")
def table():
    return load_published_losses()


def test_every_row_says_what_it_is_and_where_it_stands(table):
    named = table[["source", "series", "kind", "metric", "citation"]]
    assert not named.isna().any().any()
    assert (named != "").all().all()
    assert not table.drop(columns=["printed", "loss", "citation"]).duplicated().any()
    assert table["printed"].gt(0).all()


def test_losses_are_in_nats(table):
    scores, perplexities = (table["metric"] == name for name in ("score", "perplexity"))
    assert table.loc[scores, "loss"].isna().all()
    np.testing.assert_allclose(np.exp(table.loc[perplexities, "loss"]), table.loc[perplexities, "printed"], rtol=1e-5)
    rest = ~(scores | perplexities)
    assert (table.loc[rest, "loss"] == table.loc[rest, "printed"]).all()
    # No cross-entropy in nats is as high as that of a guess among 200,000 tokens.
    assert table["loss"].dropna().between(0.05, np.log(2e5)).all()


def test_slices_lose_more_than_their_model_the_more_so_the_narrower(table):
    of_slices = table[table["source"] == "SliceGPT"]
    assert of_slices["series"].nunique() == 10
    for _, model in of_slices.groupby("series"):
        assert (np.diff(model["width"]) < 0).all()
        assert (np.diff(model["loss"]) > 0).all()
        assert model["teacher_loss"].eq(model["loss"].iloc[0]).all()
        assert (model["width"] % 8 == 0).all()
        np.testing.assert_allclose(model["relative_width"], model["width"] / model["width"].iloc[0], rtol=1e-5)
    excess = of_slices.query("series == 'Llama-2-70B'").eval("loss - teacher_loss")
    np.testing.assert_allclose(excess, [0, 0.1057, 0.2470, 0.3261, 0.4194], atol=5e-5)


def test_wide_models_of_the_grid_are_better_at_each_depth(table):
    grid = table.query("source == 'open_lm grid' and variant == 'best of the grid' and width >= 512")
    losses = grid.pivot_table(index="depth", columns="width", values="loss")
    assert losses.shape == (5, 5)
    assert (np.diff(losses, axis=0) < 0).all()
    assert (np.diff(losses, axis=1) < 0).all()


def test_the_papers_students_are_among_them_unchanged(table):
    students = table[table["source"] == "geometric limits"]
    assert students["loss"].tolist() == load_paper_tables().distillation.kl.tolist()
    assert students["n_tokens"].unique().tolist() == [491_520_000]


def test_the_term_of_the_width_is_the_law_that_its_source_gives(table):
    terms = table[table["metric"] == "cross-entropy above the limit"]
    np.testing.assert_allclose(terms["loss"], 476.0763 * terms["width"] ** -0.9098, atol=1.1e-3)


def test_tables_are_new_on_every_call():
    changed = load_published_losses()
    changed.loc[0, "loss"] = 0.0
    assert load_published_losses()["loss"][0] == 1.320
