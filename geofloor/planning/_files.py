"""Files of a plan: results, the bound and costs apart, so that results are the same bytes after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geofloor._files.atomic import read_json, write_json
from geofloor._files.schema import Field, choice, fields, flag, mapping, number, optional, refusing, text
from geofloor.language_models import BottleneckPredictor
from geofloor.planning._checks import FAILED, OK, WARNING, Check
from geofloor.planning._cost import StageCost
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import Features, StudentRun, TeacherFacts

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_FORMAT = 1
STAGES = "bottleneck", "students", "features"
PLAN, BOUND, COST = "plan.json", "bound.json", "cost.json"


def write_plan(plan: Plan, folder: Path, keys: Mapping[str, str] | None = None) -> None:
    """Write a plan to a folder.

    Parameters
    ----------
    plan : Plan
        The plan.
    folder : Path
        The folder.
    keys : dict of str to str, default=None
        Digests of what each stage was made from, to resume; None keeps those of the plan.
    """
    if keys is not None:
        plan.__dict__["_keys"] = dict(keys)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.bound is not None:
        plan.bound.save(folder / BOUND)
    write_json(folder / COST, [each._asdict() for each in plan.costs])
    write_json(
        folder / PLAN,
        {
            "format": _FORMAT,
            "geofloor": version("geofloor"),
            "settings": plan.settings.to_json(),
            "teacher": plan.teacher._asdict(),
            "texts": [each._asdict() for each in plan.texts],
            "notes": [each._asdict() for each in plan.notes],
            "sizes": {str(width): list(each) for width, each in plan.sizes.items()},
            "has_bound": plan.bound is not None,
            "runs": [each._asdict() for each in plan.runs],
            "features": None if plan.features is None else plan.features._asdict(),
            "keys": plan.__dict__.get("_keys", {}),
        },
    )


def read_plan(folder: Path) -> Plan:
    """Read a plan from a folder.

    Raises
    ------
    ValueError
        If the files are damaged, or not those of a plan.
    FileNotFoundError
        If there is none.
    """
    return read_stored(folder)[0]


def read_stored(folder: Path) -> tuple[Plan, dict[str, str]]:
    """Read a plan and the digests of its stages."""
    from geofloor.planning._plan import Plan

    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"folder='{folder}' holds no {PLAN}; give the folder of Plan.save or checkpoint_dir.")
    content = read_json(path.read_text(encoding="utf-8"), path)
    written = content.get("format") if isinstance(content, dict) else None
    if type(written) is int and written > _FORMAT:
        raise ValueError(
            f"'{path}' was written by geofloor {content.get('geofloor')}, in format {written}; read it with that "
            "version or a newer one."
        )
    with refusing(path):
        content = _CONTENT(PLAN, content)
    plan = Plan(
        PlanSettings.from_json(content["settings"]),
        TeacherFacts(**content["teacher"]),
        [Check(**each) for each in content["texts"]],
        [Check(**each) for each in content["notes"]],
        {int(width): (each[0], each[1]) for width, each in content["sizes"].items()},
        runs=[StudentRun(**each) for each in content["runs"]],
        features=None if content["features"] is None else Features(**content["features"]),
    )
    plan.__dict__["_keys"] = content["keys"]
    if content["has_bound"]:
        plan.bound = BottleneckPredictor.load(folder / BOUND)
    costs = folder / COST
    if costs.is_file():
        with refusing(costs):
            rows = _COSTS(COST, read_json(costs.read_text(encoding="utf-8"), costs))
        plan.costs = [StageCost(**each) for each in rows]
    return plan, content["keys"]


def _listed(field: Field, length: int | None = None) -> Field:
    """Allow a list, and return it as a tuple."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise ValueError(f"{name}={value!r:.40} is no list of the right length")
        return tuple(field(f"{name}[{index}]", each) for index, each in enumerate(value))

    return check


def _by_width(field: Field) -> Field:
    def check(name: str, value: Any) -> dict[str, Any]:
        if not all(key.isascii() and key.isdigit() and len(key) < 16 for key in mapping(name, value)):
            raise ValueError(f"{name} has a key that is no width")
        return {key: field(f"{name}[{key}]", each) for key, each in value.items()}

    return check


def _features(name: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _FEATURES(name, value)
    if {len(found[each]) for each in ("kept", "floors", "nats")} != {len(found["widths"])}:
        raise ValueError(f"{name} has columns of different lengths")
    return found


_WHOLE, _COUNT, _LOSS = number(0, whole=True), number(1, whole=True), number(0)
_CHECKS = _listed(fields(stage=text, status=choice(OK, WARNING, FAILED), message=text))
_FEATURES = fields(
    layer=_WHOLE,
    n_latents=_COUNT,
    n_features=_COUNT,
    mean_l0=_LOSS,
    alpha=number(),
    capacity=_LOSS,
    critical_width=_LOSS,
    explained_variance=optional(number()),
    tail_exponent=optional(number()),
    total=_LOSS,
    widths=_listed(_COUNT),
    kept=_listed(_WHOLE),
    floors=_listed(_LOSS),
    nats=_listed(number()),
    warnings=_listed(text),
)
_CONTENT = fields(
    format=_COUNT,
    geofloor=text,
    settings=fields(
        target_kl=optional(number(0, open_low=True)),
        width=optional(_COUNT),
        widths=optional(_listed(_COUNT)),
        run_widths=optional(_listed(_COUNT)),
        budgets=_listed(_COUNT),
        batch_size=_COUNT,
        n_tokens=_COUNT,
        length=number(2, whole=True),
        init=choice("auto", "principal", "random"),
        head_dim=optional(number(2, whole=True)),
        features=flag,
        layer=optional(_WHOLE),
        random_state=_WHOLE,
    ),
    teacher=fields(
        name=text,
        kind=text,
        width=_COUNT,
        n_layers=_COUNT,
        n_heads=_WHOLE,
        n_vocabulary=_COUNT,
        n_parameters=_COUNT,
        digest=text,
    ),
    texts=_CHECKS,
    notes=_CHECKS,
    sizes=_by_width(_listed(optional(_COUNT), 2)),
    has_bound=flag,
    runs=_listed(
        fields(
            width=_COUNT,
            n_steps=optional(_COUNT),
            loss=number(0, open_low=True),
            error=optional(_LOSS),
            init=optional(text),
            source=choice("plan", "given"),
        )
    ),
    features=optional(_features),
    keys=mapping,
)
_COSTS = _listed(fields(stage=choice(*STAGES), seconds=_LOSS, memory=_LOSS, disk=_LOSS, actual_seconds=optional(_LOSS)))
