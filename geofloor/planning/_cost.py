"""Cost of a plan: seconds, memory and disk of each stage, before the work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from geofloor.planning._settings import PlanSettings
from geofloor.planning._text import PlanTokens


class StageCost(NamedTuple):
    """Cost of one stage."""

    stage: str  # "bottleneck", "students" or "features"
    seconds: float  # estimated
    memory: float  # bytes at the peak, on the device
    disk: float  # bytes
    actual_seconds: float | None = None  # None until the stage has ended


def cost_table(costs: Iterable[StageCost]) -> pd.DataFrame:
    """Return a table with one row per stage and the fields of `StageCost` as columns."""
    return pd.DataFrame(list(costs), columns=list(StageCost._fields))


def estimate_cost(
    module: Any, text: PlanTokens, settings: PlanSettings, *, layer: int, trains_autoencoder: bool = True
) -> list[StageCost]:
    """Estimate the cost of each stage by timing short pieces of it on this machine.

    Parameters
    ----------
    module : torch.nn.Module
        The teacher, loaded on its device.
    text : PlanTokens
        Text of the plan.
    settings : PlanSettings
        With widths filled in.
    layer : int
        Block whose features are measured.
    trains_autoencoder : bool, default=True
        Whether the plan trains an autoencoder.

    Returns
    -------
    costs : list of StageCost
        One per stage of the plan, in its order.
    """
    return []
