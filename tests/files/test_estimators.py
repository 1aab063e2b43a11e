"""Files of small estimators: the same bits of predictions, and refusals by name."""

import copy
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import damaged, forged, forged_file, read_or_refusal
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_models import N_VOCABULARY, WIDTH, gpt_neox

from geofloor import (
    AblationPredictor,
    BottleneckPredictor,
    FeatureStatistics,
    FloorPredictor,
    LossForecaster,
    SparseAutoencoder,
)
from geofloor._files import tables
from geofloor._training.checkpoints import sign
from geofloor.forecasting import (
    AboveBottleneck,
    Calibrated,
    EndsAtTeacher,
    Exponential,
    Law,
    PowerOfWidthAboveBaseline,
)
from geofloor.theory import AutoAllocation, cutoff_curve

pytestmark = pytest.mark.filterwarnings("ignore")  # small fits warn
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(N_VOCABULARY, size=(20, 8))
CODES = np.maximum(RNG.normal(size=(200, 12)) - 1.2, 0.0)
IMPORTANCES = RNG.pareto(1.5, size=80) * RNG.integers(2, size=80)
WIDTHS = [0, 1, 2.5, 7, 12, 15]
RUNS = [4, 8, 12], [0.0013, 0.00043, 0.00011]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture(scope="module")
def teacher(folder):
    model = gpt_neox()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def bound(teacher):
    settings = {"widths": [4, 8, 12], "n_positions": 40, "n_steps": 3, "random_state": 0, "device": "cpu"}
    return BottleneckPredictor(teacher, **settings).fit(TOKENS)


@pytest.fixture(scope="module")
def ablation(teacher):
    return AblationPredictor(teacher, 1, n_points=4, device="cpu").fit(TOKENS)


@pytest.fixture(scope="module")
def autoencoder():
    W = RNG.normal(size=(24, WIDTH))
    decoder = W / np.linalg.norm(W, axis=1, keepdims=True)
    zeros = {"b_enc": np.zeros(24), "b_dec": np.zeros(WIDTH)}
    return SparseAutoencoder.from_weights(W_enc=W.T, W_dec=decoder, **zeros, activation="relu")


def behavior(fitted):
    """Everything that can be seen of predictions, finite but for what is documented."""
    if isinstance(fitted, FeatureStatistics):
        return [fitted.table_, fitted.alive_, fitted.alpha_, fitted.critical_width_, fitted.transform(CODES)]
    found = [fitted.predict(WIDTHS), fitted.min_width([0.0001, 0.01, 10.0])]
    for option in ("return_interval", "return_bounds"):
        try:
            found += fitted.predict(WIDTHS, **{option: True})
        except (TypeError, ValueError) as error:
            assert "return_" in str(error)  # noqa: PT017 - not all have both
    if isinstance(fitted, LossForecaster):
        found += [fitted.decide(7, 0.0005).answer, fitted.params_, fitted.probabilities_, fitted.form_error_]
        found += [fitted.predict([7], n_steps=200)] if fitted.budget_.several else []
    if isinstance(fitted, BottleneckPredictor | AblationPredictor):
        found += [fitted.curve_.to_dict("list"), fitted.critical_width_]
    return found


def reloaded(fitted, path):
    fitted.save(path)
    loaded = type(fitted).load(path)
    np.testing.assert_equal(behavior(loaded), behavior(fitted))
    loaded.save(again := path.with_name("again"))
    assert again.read_bytes() == path.read_bytes()
    return loaded


@pytest.mark.parametrize(
    ("settings", "data", "more"),
    [
        ({"alpha": np.float64(0.9)}, IMPORTANCES, {}),
        ({"alpha": 0.9}, RNG.pareto(1.5, size=5000), {}),
        ({"alpha": 0.9}, IMPORTANCES, {"second_moments": RNG.random(80)}),
        ({"allocation": "auto", "curve": "deep"}, FeatureStatistics().fit(CODES).table_, {}),
        ({"allocation": AutoAllocation(starts="best")}, FeatureStatistics().fit(CODES).table_, {}),
        ({"allocation": cutoff_curve(3.0), "alpha": 0.5}, IMPORTANCES, {}),
        ({"capacity": "minimax"}, pd.DataFrame({"importance": [3.0, 1.0], "firing_rate": [0.1, 0.3]}), {}),
    ],
)
def test_floors_are_those_of_the_saved_predictor(settings, data, more, tmp_path):
    fitted = FloorPredictor(**settings).fit(data, **more)
    loaded = reloaded(fitted, tmp_path / "floor")
    assert repr(loaded) == repr(fitted).replace("np.float64(0.9)", "0.9")
    np.testing.assert_equal(loaded.allocate(3.0), fitted.allocate(3.0))


def test_statistics_go_on_after_loading(tmp_path):
    names = [f"latent {index}" for index in range(12)]
    fitted = FeatureStatistics(min_firing_rate=0.01).fit(pd.DataFrame(CODES, columns=names))
    loaded = reloaded(fitted, tmp_path / "statistics")
    assert loaded.feature_names_in_.tolist() == names
    more = pd.DataFrame(CODES[::2], columns=names)
    np.testing.assert_array_equal(loaded.partial_fit(more).table_, fitted.partial_fit(more).table_)
    np.testing.assert_array_equal(loaded.merge(fitted).table_[:, 1], fitted.table_[:, 1])


def test_a_bound_is_loaded_without_its_teacher_unless_by_name(bound, teacher, folder, tmp_path):
    loaded = reloaded(bound, tmp_path / "bound")
    assert loaded.get_params() == {**bound.get_params(), "teacher": None, "widths": (4, 8, 12), "device": "auto"}
    with pytest.raises(ValueError, match="teacher=None must be"):
        loaded.fit(TOKENS)
    assert clone(loaded).set_params(teacher=teacher, device="cpu").fit(TOKENS).curve_.equals(bound.curve_)
    by_name = copy.deepcopy(bound).set_params(teacher=folder, widths=range(4, 13, 4))
    assert reloaded(by_name, tmp_path / "bound").teacher == os.fspath(folder)
    by_name.set_params(model_kwargs={"trust_remote_code": True})
    loaded = reloaded(by_name, tmp_path / "bound")  # the file must not choose arguments of from_pretrained
    assert (loaded.teacher, loaded.model_kwargs) == (None, None)


def test_ablation_is_loaded_without_its_dictionary(ablation, autoencoder, teacher, tmp_path):
    reloaded(ablation, tmp_path / "ablation")
    reloaded(clone(ablation).set_params(above_own_width=True).fit(TOKENS), tmp_path / "ablation")
    reloaded(clone(ablation).fit(TOKENS[:1]), tmp_path / "ablation")  # no standard errors
    statistics = FeatureStatistics().fit(autoencoder.transform(RNG.normal(size=(300, WIDTH))))
    fitted = AblationPredictor(teacher, 1, autoencoder, statistics, n_points=4, device="cpu").fit(TOKENS)
    loaded = reloaded(fitted, tmp_path / "ablation")
    np.testing.assert_array_equal(loaded.statistics.table_, statistics.table_)
    with pytest.raises(ValueError, match=r"autoencoder was a SparseAutoencoder, which the file .* leaves out; give it"):
        clone(loaded).set_params(teacher=teacher).fit(TOKENS)
    again = clone(loaded).set_params(teacher=teacher, autoencoder=autoencoder, device="cpu").fit(TOKENS)
    assert again.curve_.equals(fitted.curve_)


def forecasters(bound, ablation):
    floor = FloorPredictor(alpha=0.9).fit(IMPORTANCES)
    long = FloorPredictor(alpha=0.9).fit(RNG.pareto(1.5, size=5000))
    most = bound.zero_width_loss_
    runs = RUNS[0], [most * share for share in (0.7, 0.5, 0.3)]
    return {
        "auto": LossForecaster().fit(*RUNS),
        "auto of a bound": LossForecaster(bound=bound, students="principal").fit(*runs),
        "a law of a bound": LossForecaster(AboveBottleneck(bound, exponent=1.1)).fit(*runs),
        "errors given": LossForecaster(run_error=0.02, form_error=np.float32(0.1), teacher_width=16).fit(*RUNS),
        "one law": LossForecaster(PowerOfWidthAboveBaseline()).fit(*RUNS),
        "a law with a number": LossForecaster(EndsAtTeacher(16)).fit(*RUNS),
        "a floor": LossForecaster(Calibrated(floor)).fit(*RUNS),
        "a long floor": LossForecaster(Calibrated(long, baseline=0.0)).fit(*RUNS),
        "an ablation": LossForecaster(Calibrated(ablation)).fit(*RUNS),
        "budgets": LossForecaster("power").fit(
            [4, 8, 4], [0.0013, 0.00043, 0.0011], n_steps=[100, 100, 200], n_tokens=64
        ),
    }


def test_forecasts_are_those_of_the_saved_forecaster(bound, ablation, tmp_path):
    for name, fitted in forecasters(bound, ablation).items():
        loaded = reloaded(fitted, tmp_path / name)
        assert loaded.budget_.n_tokens == fitted.budget_.n_tokens
        assert ((tmp_path / name).read_bytes()[:1] == b"{") == (name != "a long floor")


def test_changed_priors_are_told(tmp_path):
    LossForecaster().fit(*RUNS).save(path := tmp_path / "forecast")
    write(path, lambda content: content["fitted"]["params"].update(scale=0.5))
    with pytest.warns(UserWarning, match="priors have changed since it was written"):
        LossForecaster.load(path)


# Refusals


class OwnLaw(Exponential):
    pass


def test_what_no_file_can_hold_is_named_before_writing(tmp_path):
    path = tmp_path / "none"
    with pytest.raises(NotFittedError):
        FloorPredictor(0.9).save(path)
    for fitted, message in [
        (FloorPredictor(0.9, capacity=lambda alpha: 3.0 + alpha).fit([1.0]), "capacity=.* which no file can hold"),
        (LossForecaster(OwnLaw()).fit(*RUNS), "law=.* is a OwnLaw, which no file can hold"),
        (LossForecaster(Law()), "not fitted"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitted.save(path)
    assert not path.exists()


def write(path, change, **entries):
    """Change the content of a JSON file, and sign it again."""
    document = json.loads(path.read_text())
    del document["sha256"]
    change(document["metadata"])
    document.update(entries)
    path.write_text(json.dumps({"sha256": tables.checksum(json.dumps(document, sort_keys=True), {}), **document}))


def test_other_files_are_refused_by_name(autoencoder, bound, tmp_path):
    path = tmp_path / "victim"
    floor = FloorPredictor(0.9).fit(IMPORTANCES)
    with pytest.raises(FileNotFoundError, match="victim"):
        FloorPredictor.load(path)
    long = FloorPredictor(0.9).fit(np.ones(5000))
    long.save(path)
    with pytest.raises(ValueError, match="victim' holds a FloorPredictor, not a geofloor sparse autoencoder"):
        SparseAutoencoder.load(path)
    with pytest.raises(ValueError, match="victim' holds a FloorPredictor, not a LossForecaster"):
        LossForecaster.load(path)
    autoencoder.save(path)
    with pytest.raises(ValueError, match="victim' holds a geofloor sparse autoencoder, not a FloorPredictor"):
        FloorPredictor.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="victim' was not written by geofloor"):
        FloorPredictor.load(path)
    for content in ("{}", '{"kind": 3, "version": 1}', '{"kind": "FloorPredictor", "version": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="victim' was not written by geofloor"):
            FloorPredictor.load(path)
    floor.save(path)
    write(path, lambda content: None, version=2)
    with pytest.raises(ValueError, match="victim' has version 2, and this geofloor reads version 1; use .* or a newer"):
        FloorPredictor.load(path)
    floor.save(path)
    path.write_text(path.read_text().replace('"alpha": 0.9', '"alpha": 0.8'))
    with pytest.raises(ValueError, match="victim' was altered"):
        FloorPredictor.load(path)
    floor.save(path)
    path.write_text(json.dumps(json.loads(path.read_text())))  # another layout of the same
    assert FloorPredictor.load(path).predict([3]) == floor.predict([3])
    with pytest.raises(IsADirectoryError):
        floor.save(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["parameters"].update(new=1), r"unknown parameters \['new'\]"),
        (lambda c: c["parameters"].update(law={"class": "os.system", "fields": {}}), "class 'os.system', which this"),
        (lambda c: c["parameters"].update(law={"class": "token_blocks", "fields": {}}), "class 'token_blocks'"),
        (lambda c: c["parameters"].update(law={"class": "Exponential", "fields": {"a": 1}}), r"unknown \['a'\]"),
        (lambda c: c["parameters"].update(run_error=-1), "run_error=-1"),
        (lambda c: c["parameters"].update(law="gone"), "law='gone' is unknown"),
        (lambda c: c["parameters"]["law"]["fields"]["bound"]["fitted"].update(rank_=10**9), "rank_=1000000000 is not"),
        (lambda c: c["parameters"]["law"]["fields"]["bound"]["fitted"]["curve_"]["low"].reverse(), "bounds cross"),
        (lambda c: c["parameters"]["law"]["fields"]["bound"]["fitted"]["curve_"]["low"].pop(), "different lengths"),
        (
            lambda c: c["parameters"]["law"]["fields"].update(bound=copy.deepcopy(c["parameters"]["law"])),
            "bound=AboveBottleneck",
        ),
        (lambda c: c["fitted"].update(losses=[0.1, 0.2]), "samples"),
        (lambda c: c["fitted"].update(losses=[0.1, "x", 0.3]), "holds 'x', which is no number"),
        (lambda c: c["fitted"].pop("widths"), r"lacks \['widths'\]"),
    ],
)
def test_content_is_checked_beyond_its_checksum(bound, change, message, tmp_path):
    most = bound.zero_width_loss_
    fitted = LossForecaster(AboveBottleneck(bound)).fit([4, 8, 12], [0.7 * most, 0.5 * most, 0.3 * most])
    fitted.save(path := tmp_path / "victim")
    write(path, change)
    with pytest.raises(ValueError, match=rf"victim' can't be used: .*{message}"):
        LossForecaster.load(path)


def test_objects_inside_each_other_have_an_end(tmp_path):
    FloorPredictor(0.9).fit(IMPORTANCES).save(path := tmp_path / "victim")

    def nest(content):
        inner = {"class": "FloorPredictor", **copy.deepcopy(content)}
        for _ in range(200):
            inner = {"class": "FloorPredictor", "parameters": {"alpha": inner}, "fitted": content["fitted"]}
        content["parameters"]["alpha"] = inner

    write(path, nest)
    with pytest.raises(ValueError, match="more than 4 objects inside each other"):
        FloorPredictor.load(path)


# Hostile files


def kinds(bound, ablation):
    most = bound.zero_width_loss_
    return {
        "floor": FloorPredictor(allocation=AutoAllocation()).fit(FeatureStatistics().fit(CODES).table_),
        "long floor": FloorPredictor(0.9).fit(RNG.pareto(1.5, size=5000)),
        "statistics": FeatureStatistics().fit(CODES),
        "bound": bound,
        "ablation": ablation,
        "forecaster": LossForecaster(AboveBottleneck(bound)).fit([4, 8], [0.7 * most, 0.5 * most]),
    }


def sign_again(tensors, content):
    return sign(tensors, json.dumps(json.loads(content), sort_keys=True))


def forged_content(content, rng):
    if content[:1] != b"{":
        return forged_file(content, rng, sign_again)
    document = json.loads(content)
    del document["sha256"]
    label, document = forged(document, rng)
    digest = tables.checksum(json.dumps(document, sort_keys=True), {})
    return label, json.dumps({"sha256": digest, **document}).encode()


def attack(fitted, path, n, seed):
    """Damage and forge a file, and return how many forgeries were refused."""
    fitted.save(path)
    content, original, rng, refused = path.read_bytes(), behavior(fitted), np.random.default_rng(seed), 0
    for index in range(2 * n):
        label, changed = (damaged if index < n else forged_content)(content, rng)
        path.write_bytes(changed)
        found = read_or_refusal(lambda: type(fitted).load(path), path, label=label)
        if found is None:
            refused += index >= n
            continue
        try:
            seen = behavior(found)
        except ValueError as error:
            assert (index >= n, "No feature is alive" in str(error)) == (True, True), label  # noqa: PT017 - as documented
            continue
        if index < n:
            np.testing.assert_equal(seen, original, err_msg=label)
        for each in seen:
            assert not isinstance(each, np.ndarray) or not np.isnan(each).any(), label
    return refused


def attack_all(bound, ablation, path, n, seed):
    for name, fitted in kinds(bound, ablation).items():
        assert attack(fitted, path, n, seed) > n // 4, name


def test_hostile_files_are_refused_or_consistent(bound, ablation, tmp_path):
    attack_all(bound, ablation, tmp_path / "victim", 30, seed=1)


@pytest.mark.slow
def test_many_hostile_files(bound, ablation, tmp_path):
    attack_all(bound, ablation, tmp_path / "victim", 500, seed=2)
