"""Plans from a teacher and text: each stage against a direct call, resumed, extended, withheld."""

import json
from functools import partial

import numpy as np
import pytest
from small_families import PRINCIPAL, REFUSED, family_model
from small_models import word_tokenizer
from small_students import N_VOCABULARY, new_teacher

from geofloor import BottleneckPredictor, LossForecaster, Plan, plan_distillation
from geofloor.planning import _distillation, _stages
from geofloor.planning._stages import own_head_dim
from geofloor.students import distill_widths

LENGTH = 24
SMALL = {"widths": [4, 8, 12], "run_widths": [4, 12], "budgets": [40, 80], "batch_size": 4, "n_tokens": 200 * 23}
SMALL |= {"device": "cpu", "init": "principal"}


def token_ids(n=520):
    return np.random.default_rng(0).integers(N_VOCABULARY, size=(n, LENGTH))


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Fit the bottleneck in a tenth of its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stages, "BottleneckPredictor", partial(BottleneckPredictor, n_steps=20))
        yield


@pytest.fixture(scope="module")
def teacher():
    return new_teacher()


def plan_of(teacher, tokens=None, **changes):
    settings = {**SMALL, "features": False, **changes}
    return plan_distillation(teacher, token_ids() if tokens is None else tokens, **settings)


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    """A plan with all stages, in a folder."""
    folder, runs = tmp_path_factory.mktemp("plan"), tmp_path_factory.mktemp("runs")
    settings = {"target_kl": 0.6, "features": True, "layer": 0, "checkpoint_dir": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(runs))
        plan = plan_of(teacher, **settings, report_to="tensorboard")
    assert {run.name.split("-")[0] for run in runs.iterdir()} == {"DistilledStudent", "SparseAutoencoder"}
    return plan, folder


def read(folder):
    return json.loads((folder / "plan.json").read_text())


def test_each_stage_is_the_estimators_own(teacher, finished):
    plan, _ = finished
    tokens = token_ids()
    measured, held_out, more = tokens[:150], tokens[150:200], tokens[200:520]
    bound = BottleneckPredictor(
        teacher, widths=[4, 8, 12], n_positions=2048, n_steps=20, batch_size=341, random_state=0, device="cpu"
    ).fit(np.concatenate([held_out, measured]))
    np.testing.assert_array_equal(plan.bound.curve_, bound.curve_)
    students = distill_widths(
        teacher, np.concatenate([more, measured]), [4, 12], budgets=[40, 80], eval_tokens=held_out, batch_size=4,
        init="principal", device="cpu",
    )  # fmt: skip
    found = {(run.width, run.n_steps): (run.loss, run.error) for run in plan.runs}
    assert found == {(each.width, each.n_steps_): (each.floor_, each.floor_error_) for each in students}
    forecaster = LossForecaster(bound=bound, students="principal").fit(
        [each.width for each in students],
        [each.floor_ for each in students],
        n_steps=[each.n_steps_ for each in students],
        n_tokens=4 * LENGTH,
    )
    losses, interval = forecaster.predict([4, 8, 12], return_interval=True)
    np.testing.assert_allclose(plan.table[["forecast", "low", "high"]], np.column_stack([losses, interval]), rtol=1e-6)
    np.testing.assert_allclose(plan.table.longer, forecaster.predict([4, 8, 12], n_steps=160), rtol=1e-6)
    np.testing.assert_allclose(
        plan.table.impossible_below, bound.predict([4, 8, 12], return_bounds=True)[1][:, 0], rtol=1e-9
    )
    assert plan.decide(8, 0.3) == forecaster.decide(8, 0.3)
    assert plan.table.answer.tolist() == [forecaster.decide(width, 0.6).answer for width in (4, 8, 12)]


def test_features_that_have_not_converged_are_told_and_withheld(finished):
    plan, _ = finished
    assert plan.features.n_features > 0
    failures = plan.checks.query("stage == 'features' and status == 'failed'")
    assert len(failures) == len(plan.features.warnings) > 0
    assert "nats" not in plan.table
    assert "forecast" in plan.table  # it does not rest on them


def test_the_same_call_takes_everything_from_the_folder(teacher, finished, monkeypatch):
    plan, folder = finished
    before = (folder / "plan.json").read_bytes()
    Plan.load(folder).save(folder)  # which must not make the stages forget what they were made from
    for stage in ("measure_bottleneck", "train_students", "measure_features"):
        monkeypatch.setattr(_distillation, stage, None)
    again = plan_of(teacher, target_kl=0.6, features=True, layer=0, checkpoint_dir=folder)
    assert (folder / "plan.json").read_bytes() == before
    assert str(again).partition("Cost")[0] == str(plan).partition("Cost")[0]
    assert again.table.equals(plan.table)


def test_more_steps_and_widths_extend_a_plan(teacher, tmp_path, monkeypatch):
    first = plan_of(teacher, checkpoint_dir=tmp_path, budgets=[40])
    trained = []
    train = _distillation.train_students

    def recorded(module, text, settings, missing, **others):
        trained.extend(missing)
        return train(module, text, settings, missing, **others)

    monkeypatch.setattr(_distillation, "train_students", recorded)
    second = plan_of(teacher, checkpoint_dir=tmp_path, budgets=[40, 60])
    assert trained == [(4, 60), (12, 60)]
    assert [run for run in second.runs if run.n_steps == 40] == first.runs
    third = plan_of(teacher, checkpoint_dir=tmp_path, budgets=[40, 60], widths=[2, 8])
    assert trained == [(4, 60), (12, 60)]
    assert third.runs == second.runs
    assert third.table.width.tolist() == [2, 8]


@pytest.mark.parametrize("changes", [{"tokens": token_ids()[::-1]}, {"n_tokens": 190 * 23}, {"random_state": 1}])
def test_the_folder_of_another_plan_is_left_as_it_is(teacher, finished, changes):
    _, folder = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"checkpoint_dir='.*' holds a plan of another teacher or text, .* give another"
    ):
        plan_of(teacher, checkpoint_dir=folder, **changes)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_plan_comes_back_from_its_files(finished, tmp_path):
    plan, folder = finished
    plan.save(tmp_path / "copy")
    for again in (Plan.load(tmp_path / "copy"), Plan.load(folder)):
        assert again.table.equals(plan.table)
        assert again.checks.equals(plan.checks)
        assert str(again) == str(plan)
        assert again.decision == plan.decision


def leaves(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from leaves(each, (*path, key))


def test_files_of_another_kind_are_refused(finished, tmp_path):
    plan, _ = finished
    plan.save(tmp_path)
    whole = (tmp_path / "plan.json").read_text()
    random, places = np.random.default_rng(0), list(leaves(json.loads(whole)))
    n_refused = 0
    for place in random.permutation(len(places))[:150]:
        *path, key = places[place]
        content = json.loads(whole)
        target = content
        for step in path:
            target = target[step]
        target[key] = [None, "x", -1, 3.5, [], {"a": 1}, True][random.integers(7)]
        (tmp_path / "plan.json").write_text(json.dumps(content))
        try:
            again = Plan.load(tmp_path)
        except ValueError as error:
            assert "plan.json' can't be used: " in str(error)  # noqa: PT017
            n_refused += 1
        else:
            assert again.teacher.width > 0
    assert n_refused > 75
    (tmp_path / "plan.json").write_text(json.dumps({**json.loads(whole), "format": 99}))
    with pytest.raises(ValueError, match="in format 99; read it with that version"):
        Plan.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no plan\.json"):
        Plan.load(tmp_path / "elsewhere")


def test_an_impossible_target_ends_the_plan_before_the_students(teacher, monkeypatch):
    monkeypatch.setattr(_distillation, "train_students", None)
    plan = plan_of(teacher, target_kl=1e-6, width=4, features=True)
    assert plan.decision.answer == "impossible"
    assert plan.decision.least == plan.bound.predict([4], return_bounds=True)[1][0, 0]
    assert not plan.runs
    assert plan.features is None
    assert "can't reach 1e-06 nats per token, however it is trained" in str(plan)
    assert "nan" not in str(plan)


def test_a_dry_run_measures_nothing(teacher, monkeypatch):
    monkeypatch.setattr(_distillation, "measure_bottleneck", None)
    plan = plan_of(teacher, dry_run=True)
    assert plan.bound is None
    assert plan.withheld == "Nothing was measured."


def test_too_little_text_withholds_the_forecasts(teacher):
    plan = plan_of(teacher, token_ids(40), target_kl=0.6, n_tokens=100_000)
    assert plan.withheld.startswith("The text gives 960 of ")
    assert plan.forecaster is None
    assert plan.next_run() is None
    assert not {"forecast", "impossible_below"} & set(plan.table)
    assert set(plan.table.answer) == {"unknown"}
    assert "No forecasts: The text gives 960 of " in str(plan)
    with pytest.raises(ValueError, match="there is no forecast to draw"):
        plan.plot()


def test_students_no_better_than_none_withhold_the_forecasts(teacher):
    plan = plan_of(teacher, target_kl=0.6, init="random", budgets=[1], run_widths=[4])
    assert "no better than one of width 0" in plan.withheld
    assert plan.table.answer.tolist() == ["unknown"] * 3
    assert plan.decide(4, 1e-6).answer == "impossible"


def test_a_family_without_students_still_has_a_bound():
    model = family_model(REFUSED["mixtral"])
    plan = plan_of(model, token_ids() % model.config.vocab_size, target_kl=0.6)
    assert "No students can be trained" in plan.withheld
    assert (np.diff(plan.table.impossible_below) < 0).all()


def test_students_keep_the_size_of_heads_where_the_family_lets_them():
    llama = family_model(PRINCIPAL["llama"])
    assert own_head_dim(llama) == llama.config.head_dim == 8
    assert own_head_dim(new_teacher()) is None
    plan = plan_of(llama, token_ids() % llama.config.vocab_size, dry_run=True, widths=[16])
    assert plan.settings.head_dim == 8
    assert plan.table.heads.tolist() == [llama.config.num_attention_heads]


@pytest.mark.slow
def test_texts_and_a_tokenizer_give_the_same_as_token_ids(teacher):
    rows = np.random.default_rng(0).integers(1, N_VOCABULARY, size=(400, LENGTH - 1))
    tokenizer = word_tokenizer(N_VOCABULARY - 1)
    ids = np.column_stack([rows, np.zeros(len(rows), int)])
    texts = (" ".join(map(str, row)) for row in rows)
    plans = [
        plan_of(teacher, each, length=LENGTH, run_widths=[], **others)
        for each, others in ((ids, {}), (texts, {"tokenizer": tokenizer}))
    ]
    np.testing.assert_array_equal(plans[0].bound.curve_, plans[1].bound.curve_)
    with pytest.raises(ValueError, match="tokenizer=None, and none was given; give a tokenizer, or token ids"):
        plan_of(teacher, ["text"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [8, 17]}, r"widths=\[8, 17\] exceeds the teacher's width of 16"),
        ({"width": 32}, "width=32 exceeds the teacher's width of 16"),
        ({"run_widths": [20]}, r"run_widths=\[20\] exceeds"),
        ({"budgets": []}, r"budgets=\(\) must hold at least one number of steps"),
        ({"budgets": [0]}, "budgets=0 must be"),
        ({"widths": "8"}, "widths='8' must be a list of whole numbers"),
        ({"widths": []}, "widths=\\(\\) must hold at least one width"),
        ({"target_kl": 0}, "target_kl=0 must be"),
        ({"n_tokens": -5}, "n_tokens=-5 must be"),
        ({"init": "best"}, "init='best'"),
        ({"features": True, "layer": 7}, "layer=7 is not there: the model has 2 blocks, 0 to 1"),
        ({"tokens": token_ids(3)}, r"texts give 3 sequence\(s\)"),
        ({"tokens": token_ids() + N_VOCABULARY}, "texts"),
        ({"tokens": token_ids() + 0.5}, "texts"),
    ],
)
def test_bad_settings_are_refused_before_any_work(teacher, monkeypatch, changes, message):
    monkeypatch.setattr(_distillation, "measure_bottleneck", None)
    with pytest.raises(ValueError, match=message):
        plan_of(teacher, **changes)
