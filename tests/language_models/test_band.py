import dataclasses

import numpy as np
import pytest
from sklearn.base import clone
from small_models import N_VOCABULARY, WIDTH, gpt_neox

from geofloor import ActivationExtractor, FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.language_models import _band, dictionary_report, measure_band

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore::geofloor.features.OutlierRowsWarning"
)
WIDTHS = [1, 2, 4]


@pytest.fixture(scope="module")
def data():
    """Make rows of sparse features, and others held out."""
    rng = np.random.default_rng(0)
    features = rng.random((1200, 24)) * (rng.random((1200, 24)) < 0.1)
    X = (features @ rng.normal(size=(24, 10))).astype(np.float32)
    return X[:1000], X[1000:]


def grid(l0s=(1, 3), seeds=(0, 1), **changes):
    make = {"n_latents": 24, "n_epochs": 4, "batch_size": 50, "device": "cpu", **changes}
    return [SparseAutoencoder(l0=l0, random_state=seed, **make) for l0 in l0s for seed in seeds]


@pytest.fixture(scope="module")
def band(data):
    return measure_band(grid(), data[0], WIDTHS, held_out=data[1])


def test_each_row_is_what_its_dictionary_gives_alone(data, band):
    X, held_out = data
    frame = band.frame()
    for place, sae in enumerate(grid()):
        sae.fit(X)
        statistics = FeatureStatistics().fit(sae.transform(X))
        predictor = FloorPredictor().fit(statistics.table_)
        row = frame.iloc[place]
        assert (row["l0"], row["explained_variance"]) == (
            sae.transform(held_out).nnz / 200,
            pytest.approx(sae.score(held_out)),
        )
        assert row["critical_width"] == pytest.approx(statistics.critical_width_)
        assert (row["n_features"], row["n_latents"], row["seed"]) == (statistics.n_alive_, 24, place % 2)
        assert row["alpha"] == pytest.approx(statistics.alpha_)
        np.testing.assert_allclose(row[["floor_1", "floor_2", "floor_4"]].astype(float), predictor.predict(WIDTHS))
        assert band.variance == pytest.approx(np.square(held_out - held_out.mean(axis=0)).sum() / 200)
        assert row["total"] == pytest.approx(statistics.table_[:, 0].sum())
    assert not {"kl", "kl_recovered"} & {*frame}


def test_ends_of_the_band_are_the_lowest_and_the_highest(band):
    floors = band.floors()
    assert floors.shape == (4, 3)
    np.testing.assert_array_equal(band.floor_range(), np.array([floors.min(axis=0), floors.max(axis=0)]).T)
    shares = band.floors(relative=True)
    np.testing.assert_allclose(shares * band.variance, floors)
    np.testing.assert_array_equal(band.floor_range(relative=True)[:, 1], shares.max(axis=0))
    assert band.critical_width_range() == (band.critical_widths.min(), band.critical_widths.max())
    assert band.frame(relative=True)["share_2"].tolist() == shares[:, 1].tolist()


def test_fitted_autoencoders_are_measured_as_they_are(data, band):
    X, held_out = data
    fitted = band.autoencoders[0]
    mixed = measure_band([grid()[1], fitted], X, WIDTHS, held_out=held_out)
    assert mixed.autoencoders[1] is fitted
    np.testing.assert_array_equal(mixed.floors(), band.floors()[[1, 0]])
    once = measure_band([fitted], (X[i : i + 100] for i in range(0, 1000, 100)), WIDTHS, held_out=held_out)
    np.testing.assert_allclose(once.floors(), band.floors()[:1], rtol=1e-6)


def test_a_one_time_iterator_needs_other_rows_for_the_tables(data, band):
    X, held_out = data
    parts = [X[i : i + 100] for i in range(0, 1000, 100)]
    with pytest.raises(ValueError, match="table_rows=None needs data that can be read twice"):
        measure_band(grid(), iter(parts), WIDTHS, held_out=held_out)
    again = measure_band(grid(), iter(parts), WIDTHS, held_out=iter([held_out]), table_rows=iter(parts))
    np.testing.assert_allclose(again.floors(), band.floors(), rtol=1e-6)


def test_statistics_and_predictor_are_those_given(data):
    X, held_out = data
    made = measure_band(
        grid((3,), (0,)), X, WIDTHS, held_out=held_out,
        statistics=FeatureStatistics(min_firing_rate=0.05), predictor=FloorPredictor(capacity="minimax"),
    )  # fmt: skip
    assert made.statistics[0].table_[:, 1].min() > 0.05
    assert made.predictors[0].capacity == "minimax"


@pytest.fixture(scope="module")
def in_teacher():
    teacher = gpt_neox()
    tokens = np.random.default_rng(0).integers(N_VOCABULARY, size=(120, 12))
    extractor = ActivationExtractor(teacher, 1)
    X, held_out = extractor.transform(tokens[:100]), extractor.transform(tokens[100:])
    given = grid((1, 4), n_epochs=20)
    return teacher, tokens[100:], X, held_out, measure_band(
        given, X, WIDTHS, held_out=held_out, teacher=teacher, layer=1, tokens=tokens[100:]
    )  # fmt: skip


def test_reports_are_those_of_each_dictionary(in_teacher):
    teacher, tokens, _, _, made = in_teacher
    for sae, report in zip(made.autoencoders, made.reports, strict=True):
        assert report == dictionary_report(teacher, 1, sae, tokens)
    assert made.frame()["kl_recovered"].tolist() == [each.kl_div_score_above_mean for each in made.reports]


def test_reports_are_of_the_output_and_tokens_asked_for(in_teacher):
    teacher, tokens, X, held_out, made = in_teacher
    settings = {"output": "mlp", "exclude_tokens": [3, 5], "n_vocabulary": 30}
    text = np.minimum(tokens, 29)
    found = measure_band(
        made.autoencoders[:1], X, WIDTHS, held_out=held_out, teacher=teacher, layer=1, tokens=text, **settings
    )
    assert repr(found.reports[0]) == repr(dictionary_report(teacher, 1, made.autoencoders[0], text, **settings))
    assert found.reports[0].output == "mlp"


def test_the_sparsest_setting_that_recovers_the_share_with_every_seed_is_chosen(in_teacher):
    *_, made = in_teacher

    def recovering(*shares):
        reports = [
            dataclasses.replace(report, kl_div_score_above_mean=share)
            for report, share in zip(made.reports, shares, strict=True)
        ]
        return dataclasses.replace(made, reports=tuple(reports))

    assert recovering(0.96, 0.97, 0.98, 0.99).choose(0.95) == 0
    assert recovering(0.96, 0.94, 0.98, 0.99).choose(0.95) == 2  # one seed of the sparser setting is below
    assert recovering(0.96, 0.94, 0.98, 0.99).choose(0.94) == 0
    with pytest.raises(ValueError, match=r"share=0\.95 is met by no setting .* has 0\.980; add .* larger l0 than 4"):
        recovering(0.5, 0.2, 0.98, 0.9).choose(0.95)
    left = [0.3, 0.1, 0.09, 0.08]
    reports = [dataclasses.replace(report, kl_div_with_sae=kl) for report, kl in zip(made.reports, left, strict=True)]
    by_loss = dataclasses.replace(made, reports=tuple(reports))
    assert (by_loss.choose(kl=0.3), by_loss.choose(kl=0.1)) == (0, 2)
    with pytest.raises(ValueError, match=r"kl=0\.01 is met by no setting .* has 0\.080"):
        by_loss.choose(kl=0.01)
    for wrong, message in [({"share": 1.5}, "share=1.5"), ({}, "give one"), ({"share": 0.9, "kl": 0.1}, "give one")]:
        with pytest.raises(ValueError, match=message):
            made.choose(**wrong)


def test_a_choice_needs_a_teacher(band):
    with pytest.raises(ValueError, match=r"share=0\.9 can't be met, because the band was measured without a teacher"):
        band.choose(0.9)


def test_wrong_arguments_are_refused_before_the_fits(in_teacher, monkeypatch):
    teacher, tokens, X, held_out, _ = in_teacher
    monkeypatch.setattr(_band, "fit_autoencoders", None)
    good = {"held_out": held_out}
    in_model = good | {"teacher": teacher, "layer": 1, "tokens": tokens}
    for arguments, message in [
        (in_model | {"layer": None}, "layer=None, and a report needs"),
        (good | {"tokens": tokens}, "teacher=None, and a report needs"),
        (in_model | {"layer": 99}, "layer=99"),
        (in_model | {"tokens": tokens + 10_000}, "tokens"),
        (in_model | {"held_out": held_out[:, :3]}, f"held_out has 3 inputs, .* have {WIDTH}"),
        (good | {"held_out": held_out * np.nan}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure_band(grid(), X, WIDTHS, **arguments)
    with pytest.raises(ValueError, match="widths"):
        measure_band(grid(), X, [-1], **good)
    with pytest.raises(ValueError, match="autoencoders=.* is empty"):
        measure_band([], X, WIDTHS, **good)
    for wrong in ([FloorPredictor()], clone(grid()[0]), "topk"):
        with pytest.raises(TypeError, match="give a list of SparseAutoencoder"):
            measure_band(wrong, X, WIDTHS, **good)
    with pytest.raises(TypeError, match="statistics="):
        measure_band(grid(), X, WIDTHS, statistics=1, **good)
