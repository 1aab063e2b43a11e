"""Files of a plan: results, the bound and costs apart, so that results are the same bytes after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geofloor._files.atomic import read_json, write_json
from geofloor.language_models import BottleneckPredictor
from geofloor.planning._checks import Check
from geofloor.planning._cost import StageCost
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import Features, StudentRun, TeacherFacts

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_FORMAT = 1
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
        Digests of what each stage was made from, to resume.
    """
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
            "keys": dict(keys or {}),
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
    if isinstance(content, dict) and content.get("format", _FORMAT) != _FORMAT:
        raise ValueError(
            f"'{path}' was written by geofloor {content.get('geofloor')}, in format {content['format']}; read it with "
            "that version."
        )
    try:
        features = content["features"]
        plan = Plan(
            PlanSettings.from_json(content["settings"]),
            TeacherFacts(**content["teacher"]),
            [Check(**each) for each in content["texts"]],
            [Check(**each) for each in content["notes"]],
            {int(width): (each[0], each[1]) for width, each in content["sizes"].items()},
            runs=[StudentRun(**each) for each in content["runs"]],
            features=None if features is None else Features(**_as_tuples(features)),
        )
        keys = dict(content["keys"])
        if content["has_bound"]:
            plan.bound = BottleneckPredictor.load(folder / BOUND)
        if (costs := folder / COST).is_file():
            plan.costs = [StageCost(**each) for each in read_json(costs.read_text(encoding="utf-8"), costs)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"'{path}' is no plan that geofloor wrote ({type(error).__name__}: {error}).") from error
    return plan, keys


def _as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
