"""Make a plan: from a teacher and text to a decision, cheapest stage first."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from geofloor._files.atomic import check_writable
from geofloor._training.reports import check_report_to
from geofloor._validation import check_flag, check_number, check_path, shown
from geofloor.language_models._blocks import find_blocks
from geofloor.language_models._loading import is_name, load_language_model
from geofloor.language_models._logits import LanguageModel
from geofloor.planning._checks import FAILED, OK, WARNING, Check, check_text
from geofloor.planning._console import cost_lines, stage_lines
from geofloor.planning._cost import StageCost, estimate_cost
from geofloor.planning._files import PLAN, read_stored, write_plan
from geofloor.planning._plan import Plan
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import (
    describe_teacher,
    measure_bottleneck,
    measure_features,
    own_head_dim,
    read_autoencoder,
    reason_for_no_students,
    student_sizes,
    train_students,
)
from geofloor.planning._text import PlanTokens, read_text


def plan_distillation(
    teacher: Any,
    texts: Any,
    *,
    target_kl: float | None = None,
    width: int | None = None,
    widths: Sequence[int] | None = None,
    run_widths: Sequence[int] | None = None,
    budgets: Sequence[int] = (150, 300, 600),
    batch_size: int = 8,
    n_tokens: int = 200_000,
    length: int = 256,
    init: str = "auto",
    head_dim: int | None = None,
    features: bool = True,
    layer: int | None = None,
    autoencoder: Any = None,
    tokenizer: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    device: str = "auto",
    random_state: int = 0,
    verbose: int = 0,
    report_to: str | Sequence[str] | None = None,
) -> Plan:
    r"""Plan a distillation: how low students of each width get, and which width reaches a target.

    The cheapest stage comes first. The *bottleneck* bounds the loss of every student from the teacher alone, and the
    plan stops there if the target is impossible at the width asked about. Two *students* are then trained for a few
    numbers of steps, and their losses give *forecasts* with intervals and a decision. Last, a dictionary of *features*
    explains what students of each width have to drop.

    Parameters
    ----------
    teacher : PreTrainedModel, str or path-like
        Causal language model of ``transformers``, its name or its folder. It is not changed.
    texts : iterable of str, datasets.Dataset, or int array of shape (n_sequences, length)
        Text like that which students are to be distilled on, or its token ids. It is read as far as needed.
    target_kl : float or None, default=None
        Loss to reach, in nats per token: KL at temperature 2. None decides nothing.
    width : int or None, default=None
        Width to decide on, in dimensions.
    widths : sequence of int or None, default=None
        Widths of the table. None takes 1/16, 1/8, 1/4, 1/2, 3/4 and 7/8 of the teacher's.
    run_widths : sequence of int or None, default=None
        Widths of the students to train. None takes a quarter and three quarters of the teacher's; () trains none.
    budgets : sequence of int, default=(150, 300, 600)
        Numbers of steps that each of these is trained for, each to the end of a schedule of its own. With several, the
        trend over the steps tells what longer training would give.
    batch_size : int, default=8
        Sequences per step.
    n_tokens : int, default=200_000
        Tokens to measure on; some of them are held out. Students are trained on more.
    length : int, default=256
        Tokens per sequence, unless `texts` are token ids.
    init : {"auto", "principal", "random"}, default="auto"
        How students start, as in `DistilledStudent`.
    head_dim : int or None, default=None
        Dimensions of the students' heads, as in `DistilledStudent`. None takes those of the teacher where its family
        allows any size, since other sizes rotate at other frequencies.
    features : bool, default=True
        Whether to measure features. The decision does not rest on them.
    layer : int or None, default=None
        Block whose output is measured for features; None takes the middle one.
    autoencoder : SparseAutoencoder, str, path or None, default=None
        A trained dictionary for this block: the estimator, its file, or a published one that
        `geofloor.features.load_autoencoder` reads. None trains one.
    tokenizer : PreTrainedTokenizerBase, str, path or None, default=None
        Tokenizer; None takes that of a teacher given by name.
    model_kwargs : dict or None, default=None
        More arguments for ``from_pretrained`` of a teacher given by name.
    checkpoint_dir : str, path or None, default=None
        Folder for results and checkpoints. The same call resumes from it, to the same plan. Other widths or more steps
        extend it: what they need and is there is kept. The folder of another teacher or text is refused.
    dry_run : bool, default=False
        Whether to stop after the estimate of the cost.
    device : str, default="auto"
        As in `DistilledStudent`.
    random_state : int, default=0
        Seed of everything.
    verbose : int, default=0
        Above 0, results are printed as stages end; above 1, progress bars are shown as well.
    report_to : str, list of str or None, default=None
        Trackers for the losses of students and dictionary, as in `DistilledStudent`.

    Returns
    -------
    plan : Plan
        Its ``decision``, ``table``, ``checks`` and ``cost``; ``decide``, ``next_run``, ``add_runs``, ``plot``,
        ``report`` and ``save``. ``print`` shows it as text.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, the teacher is no causal language model, or the text is too short.
    OSError
        If teacher or tokenizer can't be loaded, or `checkpoint_dir` can't be written.

    Notes
    -----
    A stage whose check fails is told in ``checks``, and what rests on it is withheld: too little text, students no
    better than none, a dictionary that has not converged or is too dense for Eq. 1. If the teacher's family has no
    students, the plan goes on without forecasts.

    See Also
    --------
    BottleneckPredictor : Bounds the loss of every student.
    LossForecaster : Forecasts losses from the students.

    Examples
    --------
    The teacher that comes with the library, in nine minutes on one core of an AMD EPYC::

        from geofloor import plan_distillation
        from geofloor.datasets import load_local_corpus, load_teacher

        texts = (document.text for document in load_local_corpus("test"))
        plan = plan_distillation(load_teacher().path, texts, target_kl=0.25, checkpoint_dir="plan", verbose=1)
        print(plan)
        plan.report("plan/report.html")
    """
    settings = PlanSettings.read(
        target_kl=target_kl,
        width=width,
        widths=widths,
        run_widths=run_widths,
        budgets=budgets,
        batch_size=batch_size,
        n_tokens=n_tokens,
        length=length,
        init=init,
        head_dim=head_dim,
        features=features,
        layer=layer,
        random_state=random_state,
    )
    dry_run = check_flag("dry_run", dry_run)
    verbose = check_number("verbose", verbose, 0, whole=True)
    folder = None if checkpoint_dir is None else check_path("checkpoint_dir", checkpoint_dir)
    return make_plan(
        teacher,
        texts,
        settings,
        autoencoder=autoencoder,
        tokenizer=tokenizer,
        model_kwargs=model_kwargs,
        folder=folder,
        proceed=lambda plan: not dry_run,
        device=device,
        verbose=verbose,
        report_to=report_to,
    )


def make_plan(
    teacher: Any,
    texts: Any,
    settings: PlanSettings,
    *,
    autoencoder: Any = None,
    tokenizer: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    folder: Path | None = None,
    proceed: Callable[[Plan], bool] = lambda plan: True,
    stages: Sequence[str] = ("bottleneck", "students", "features"),
    device: str = "auto",
    verbose: int = 0,
    report_to: Any = None,
) -> Plan:
    """Make a plan with checked settings.

    Parameters
    ----------
    proceed : callable
        Called with the plan once its cost is estimated; without its consent the plan ends there.
    stages : sequence of str
        Stages to run.
    """
    if folder is not None:
        check_writable("checkpoint_dir", folder / PLAN)
    check_report_to(report_to)
    _, module = load_language_model(teacher, model_kwargs, device)
    model = LanguageModel(module, "the teacher")
    if not hasattr(module, "config"):
        raise ValueError(f"teacher={shown(teacher)} is no model of transformers; a plan needs its configuration.")
    facts = describe_teacher(module, str(teacher) if is_name(teacher) else type(module).__name__, model.digest())
    settings = settings.for_width(facts.width)
    if getattr(texts, "ndim", None) == 2:
        model.token_rows(texts, "texts", None)
        settings = replace(settings, length=int(texts.shape[1]))
    if settings.head_dim is None:
        settings = replace(settings, head_dim=own_head_dim(module))
    layer = facts.n_layers // 2 if settings.layer is None else settings.layer
    if settings.features and "features" in stages:
        n_blocks = find_blocks(module.base_model)[1]
        if layer >= n_blocks:
            raise ValueError(f"layer={layer} is not there: the model has {n_blocks} blocks, 0 to {n_blocks - 1}.")
        if autoencoder is not None:
            autoencoder = read_autoencoder(autoencoder, device)
            if autoencoder.n_features_in_ != facts.width:
                raise ValueError(
                    f"autoencoder={shown(autoencoder)} takes {autoencoder.n_features_in_} inputs, and the teacher has "
                    f"{facts.width} dimensions; give a dictionary of this teacher."
                )
    text = read_text(texts, teacher, settings, tokenizer=tokenizer, model_kwargs=model_kwargs)
    making = _Making(module, facts, settings, text, layer, autoencoder, folder, device, verbose, report_to)
    return making.make(proceed, stages)


class _Making:
    """A plan in the making."""

    def __init__(
        self,
        module: Any,
        facts: Any,
        settings: PlanSettings,
        text: PlanTokens,
        layer: int,
        autoencoder: Any,
        folder: Path | None,
        device: str,
        verbose: int,
        report_to: Any,
    ) -> None:
        self.module, self.settings, self.text, self.layer = module, settings, text, layer
        self.autoencoder, self.folder, self.device = autoencoder, folder, device
        self.verbose, self.report_to = verbose, report_to
        self.bars = max(verbose - 1, 0)
        length = text.measured.shape[1]
        n_measured = len(text.measured) + len(text.held_out)
        texts = check_text(settings, n_measured, len(text.trained), len(text.held_out), length)
        self.plan = Plan(settings, facts, texts)
        self.keys = self._digests(facts.digest)
        self._take_earlier()

    def make(self, proceed: Callable[[Plan], bool], stages: Sequence[str]) -> Plan:
        """Run the stages that are asked for and not done."""
        plan, settings = self.plan, self.settings
        reason = reason_for_no_students(self.module, settings) if "students" in stages else None
        if reason is not None:
            plan.notes.append(Check("students", FAILED, f"No students can be trained: {reason}"))
        elif settings.run_widths and "students" in stages:
            plan.notes.append(self._start_check())
        plan.sizes = {width: student_sizes(self.module, width, settings) for width in settings.widths or ()}
        self._say(stage_lines(plan, "checks"))
        trains = reason is None and bool(settings.run_widths) and "students" in stages
        wanted = [
            *(["bottleneck"] if "bottleneck" in stages else []),
            *(["students"] if trains else []),
            *(["features"] if settings.features and "features" in stages else []),
        ]
        plan.costs = self._costs(wanted)
        self._say(cost_lines(plan))
        if not proceed(plan):
            return plan
        if "bottleneck" in wanted:
            self._stage("bottleneck", self._bottleneck)
            if self._is_impossible():
                plan.notes.append(
                    Check("students", OK, "The target is impossible at this width, so that nothing else was measured.")
                )
                self._save()
                return plan
        if trains:
            self._stage("students", self._students)
        if "features" in wanted:
            self._stage("features", self._features)
        self._save()
        return plan

    # Stages

    def _stage(self, name: str, run: Callable[[], bool]) -> None:
        """Run a stage, keep the seconds it took, and show and save what it gave."""
        began = time.perf_counter()
        worked = run()
        if worked:
            seconds = time.perf_counter() - began
            self.plan.costs = [
                each._replace(actual_seconds=seconds) if each.stage == name else each for each in self.plan.costs
            ]
        self._save()
        self._say(stage_lines(self.plan, name))

    def _bottleneck(self) -> bool:
        if self.plan.bound is not None:
            return False
        self.plan.bound = measure_bottleneck(
            self.module, self.text, self.settings, device=self.device, verbose=self.bars
        )
        return True

    def _is_impossible(self) -> bool:
        width, target = self.settings.width, self.settings.target_kl
        return width is not None and target is not None and self.plan.decide(width).answer == "impossible"

    def _students(self) -> bool:
        settings, missing = self.settings, self._missing_runs()
        if missing:
            folder = None if self.folder is None else self.folder / f"students-{self.keys['trained'][:12]}"
            self.plan.runs += train_students(
                self.module,
                self.text,
                settings,
                missing,
                folder=folder,
                device=self.device,
                verbose=self.bars,
                report_to=self.report_to,
            )
            self.plan.runs.sort(key=lambda run: (run.width, run.n_steps or 0))
        return bool(missing)

    def _missing_runs(self) -> list[tuple[int, int]]:
        """List width and steps of the students that are not there."""
        there = {run.key for run in self.plan.runs}
        wanted = [(width, n) for width in self.settings.run_widths or () for n in self.settings.budgets]
        return [each for each in wanted if each not in there]

    def _features(self) -> bool:
        if self.plan.features is not None:
            return False
        folder = None if self.folder is None else self.folder / f"features-{self.keys['features'][:12]}"
        self.plan.features = measure_features(
            self.module,
            self.text,
            self.settings,
            layer=self.layer,
            autoencoder=self.autoencoder,
            folder=folder,
            device=self.device,
            verbose=self.bars,
            done=lambda line: self._say([f"  features: {line}"]),
            report_to=self.report_to,
        )
        return True

    # What is there

    def _digests(self, teacher: str) -> dict[str, str]:
        """Compute a digest of what each stage depends on."""
        settings = self.settings
        held_out, measured = self.text.digest("held_out"), self.text.digest("measured")

        def digest(*parts: Any) -> str:
            return hashlib.sha256(json.dumps([teacher, settings.random_state, *parts]).encode()).hexdigest()

        trained = [settings.batch_size, settings.init, settings.head_dim]
        own = None if self.autoencoder is None else _autoencoder_digest(self.autoencoder)
        return {
            "plan": digest(held_out, measured),  # without it nothing in the folder can be used
            "bottleneck": digest(held_out, measured, settings.widths, settings.run_widths),
            "students": digest(held_out, *trained),  # more steps need more text, and extend what is there
            "trained": digest(held_out, self.text.digest("trained"), *trained),
            "features": digest(held_out, measured, settings.widths, self.layer, own),
        }

    def _take_earlier(self) -> None:
        """Take over what an earlier call left in the folder, where it was made from the same."""
        self.earlier_costs: list[StageCost] = []
        if self.folder is None or not (self.folder / PLAN).is_file():
            return
        earlier, keys = read_stored(self.folder)
        if keys.get("plan", self.keys["plan"]) != self.keys["plan"]:
            raise ValueError(
                f"checkpoint_dir='{self.folder}' holds a plan of another teacher or text, or of other n_tokens, length "
                "or random_state; give another folder, or remove that one."
            )
        self.earlier_costs = earlier.costs
        same = {name for name, key in keys.items() if self.keys.get(name) == key}
        if "bottleneck" in same:
            self.plan.bound = earlier.bound
        if "students" in same:
            self.plan.runs = earlier.runs
        if "features" in same:
            self.plan.features = earlier.features

    def _costs(self, wanted: Sequence[str]) -> list[StageCost]:
        """Estimate the costs of stages, or keep those that an earlier call measured of stages that are done."""
        done = {
            "bottleneck": self.plan.bound is not None,
            "students": not self._missing_runs(),
            "features": self.plan.features is not None,
        }
        kept = {each.stage: each for each in self.earlier_costs if done[each.stage] and each.actual_seconds is not None}
        if set(wanted) <= set(kept):
            return [kept[stage] for stage in wanted]
        estimated = estimate_cost(
            self.module, self.text, self.settings, layer=self.layer, trains_autoencoder=self.autoencoder is None
        )
        return [kept.get(each.stage, each) for each in estimated if each.stage in wanted]

    def _start_check(self) -> Check:
        from geofloor.students._architecture import default_init

        init = default_init(self.module) if self.settings.init == "auto" else self.settings.init
        if init == "principal":
            return Check("students", OK, "Students start from the teacher's principal directions.")
        return Check(
            "students",
            WARNING,
            "Students start from random weights, which end higher than those that start from the teacher.",
        )

    def _save(self) -> None:
        if self.folder is not None:
            # Digests of stages that have not run would be taken for those of stages that have.
            done = {
                "bottleneck": self.plan.bound is not None,
                "students": bool(self.plan.runs),
                "features": self.plan.features is not None,
            }
            keys = {name: self.keys[name] for name, is_done in {"plan": True, **done}.items() if is_done}
            write_plan(self.plan, self.folder, keys)

    def _say(self, lines: Sequence[str]) -> None:
        if self.verbose and lines:
            tqdm.write("\n".join(lines), file=sys.stdout)


def _autoencoder_digest(autoencoder: Any) -> str:
    digest = hashlib.sha256()
    for name in ("encoder_", "encoder_bias_", "decoder_", "decoder_bias_"):
        digest.update(getattr(autoencoder, name).tobytes())
    return digest.hexdigest()
