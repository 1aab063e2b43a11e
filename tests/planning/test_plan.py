"""Answers of a plan, without training."""

import numpy as np
import pandas as pd
import pytest
from stand_in_bound import Bound

from geofloor import LossForecaster, Plan
from geofloor.planning._checks import Check, check_features, check_runs, check_text
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import StudentRun, TeacherFacts

TEACHER = TeacherFacts("teacher", "llama", 200, 12, 16, 32_000, 10**8, "")
LOSSES = {50: 1.6, 150: 0.35}


class Narrow(Bound):
    """The bound of tests, of a teacher a tenth as wide."""

    rank_, critical_width_ = 200, 200.0
    curve_ = pd.DataFrame({"width": np.arange(201), "standard_error": 0.001})

    def predict(self, widths, **options):
        return super().predict(10 * np.floor(widths), **options)


def plan_of(runs=None, **settings):
    runs = LOSSES if runs is None else runs
    chosen = PlanSettings(**{"widths": (25, 50, 100, 150), "budgets": (300,), **settings})
    found = [StudentRun(width, 300, loss, 0.01, "principal") for width, loss in runs.items()]
    return Plan(chosen, TEACHER, [Check("text", "ok", "Enough text.")], bound=Narrow(), runs=found)


def test_the_decision_is_for_the_width_asked_or_the_narrowest_go():
    plan = plan_of(target_kl=1.2)
    answers = {width: plan.decide(width).answer for width in plan.settings.widths}
    go = min(width for width, answer in answers.items() if answer == "go at this budget")
    assert plan.decision == plan.decide(go)
    assert plan.next_run().asked == plan.forecaster.min_width(1.2)
    assert plan_of(target_kl=1.2, width=30).decision.width == 30
    assert plan_of(target_kl=0.05).decision.width == 150  # none is a go
    assert plan_of(target_kl=1.2, widths=(200,)).decision.answer == "unknown"
    assert plan_of(target_kl=1.2, widths=(200,)).next_run() is None
    assert plan_of().decision is None
    assert "answer" not in plan_of().table
    with pytest.raises(ValueError, match="target=None, and the plan has no target_kl"):
        plan_of().decide(50)


def test_the_next_run_is_the_best_of_all_widths_tried():
    plan = plan_of(target_kl=1.2)
    found = plan.next_run(100)
    assert found.asked == 100

    def factor(runs, width=100):
        forecaster = LossForecaster(bound=Narrow(), students="principal").fit(list(runs), list(runs.values()))
        low, high = forecaster.predict([width], return_interval=True)[1][0]
        return high / low

    assert found.factor == pytest.approx(factor(LOSSES))
    forecast = plan.forecaster.predict([25, 70, 100, found.width])
    tried = [factor({**LOSSES, w: f}) for w, f in zip([25, 70, 100, found.width], forecast, strict=True)]
    assert found.factor_then == pytest.approx(tried[-1])
    assert min(tried) == tried[-1] < 0.8 * found.factor
    assert plan_of(target_kl=0.8).decide(100).answer == "uncertain"
    assert plan_of(target_kl=0.8).next_run().asked == 100
    assert plan.next_run().asked == plan.forecaster.min_width(1.2)
    assert plan_of(target_kl=1.2, width=30).next_run().asked == 30
    assert str(found).startswith(f"To be surer, train one more student of width {found.width} for 300 steps.")


def test_runs_can_be_added_and_replaced():
    plan = plan_of(target_kl=1.2)
    before = plan.next_run(100).factor
    assert plan.add_runs({100: 0.8}) is plan
    assert plan.forecaster.widths_.tolist() == [50, 150, 100]
    assert plan.next_run(100).factor < before
    plan.add_runs({100: 0.82})
    assert [run.loss for run in plan.runs if run.source == "given"] == [0.82]
    assert plan.table.forecast[2] == pytest.approx(0.82, rel=0.05)
    with pytest.raises(ValueError, match=r"a student of width 100 can't lose 0.01, below 0\.\d+; measure its KL"):
        plan.add_runs({100: 0.01})
    with pytest.raises(ValueError, match=r"runs={} must hold at least one width"):
        plan.add_runs({})
    with pytest.raises(ValueError, match="runs=300 must be"):
        plan.add_runs({300: 0.5})
    with pytest.raises(TypeError, match="runs"):
        plan.add_runs([0.5])


def test_checks_of_the_text():
    settings = PlanSettings(n_tokens=20_000, length=128, run_widths=(8,), budgets=(100,), batch_size=8)
    wanted, trained = settings.n_blocks, settings.n_trained

    def statuses(n_blocks, n_trained, n_held_out):
        return [each.status for each in check_text(settings, n_blocks, n_trained, n_held_out, 128)]

    assert statuses(wanted, trained, 40) == ["ok"]
    assert statuses(wanted // 2, trained, 40) == ["warning"]
    assert statuses(wanted // 20, trained, 40) == ["failed"]
    assert statuses(wanted, trained, 20) == ["warning"]
    assert statuses(wanted, trained, 3) == ["failed"]
    (told,) = check_text(settings, wanted, trained // 4, 40, 128)
    assert "see each sequence 4.0 times" in told.message


def test_runs_of_a_budget_that_taught_nothing_are_left_out():
    checks, untrained = check_runs([(8, 0.99, 10), (24, 0.7, 10), (8, 0.8, 20), (24, 0.5, 20)], 1.0)
    assert ([each.status for each in checks], untrained) == (["warning"], {10})
    assert "Runs of 10 steps are left out" in checks[0].message
    checks, untrained = check_runs([(8, 0.99, 10)], 1.0)
    assert ([each.status for each in checks], untrained) == (["failed"], {10})
    plan = plan_of({})
    plan.runs = [StudentRun(w, n, loss) for w, n, loss in [(50, 100, 8.95), (50, 300, 1.6), (150, 300, 0.35)]]
    assert plan.forecaster.budgets_ is None
    assert plan.forecaster.widths_.tolist() == [50, 150]


def test_checks_of_a_dictionary():
    assert [each.status for each in check_features(0.9, 0.98, 150, 200, [])] == ["ok"]
    assert [each.status for each in check_features(0.9, 0.98, 250, 200, [])] == ["ok", "warning"]
    assert [each.status for each in check_features(0.9, 0.6, 150, 200, [])] == ["failed"]
    assert [each.status for each in check_features(0.22, 0.98, 150, 200, [])] == ["failed"]
    assert [each.message for each in check_features(0.9, 0.98, 150, 200, ["Train longer."])] == ["Train longer."]


def test_settings_survive_json():
    settings = PlanSettings(target_kl=0.25, widths=(8, 16), run_widths=(), budgets=(3, 4))
    assert PlanSettings.from_json(settings.to_json()) == settings


def test_the_text_says_what_is_known():
    text = str(plan_of(target_kl=1.2))
    assert repr(plan_of(target_kl=1.2)) == "Plan of teacher (width 200): 2 runs, target 1.2 nats per token"
    assert "teacher: llama, 12 blocks of width 200, 16 heads, 100 M parameters" in text
    assert "width 50, 300 steps: 1.6000 ± 0.0100" in text
    assert "90% interval" in text
    assert not any(word in text for word in ("nan", "None", "<NA>"))
