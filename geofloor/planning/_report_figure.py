"""Figure of a report: an SVG picture in the colors of the page, and the same interactive where plotly is installed."""

from __future__ import annotations

import hashlib
import html
import importlib
import io
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from geofloor.displays._drawing import set_scale
from geofloor.displays._style import COLORS, FAINT, INK, NATS, WIDTH_LABEL

if TYPE_CHECKING:
    from geofloor.planning._plan import Plan

_WIDE, _NARROW = (8.6, 3.8), (4.1, 3.7)  # inches
_LEGEND_COLUMNS = {_WIDE: 5, _NARROW: 2}
_LOSS_LABEL = f"loss ({NATS})"
# Colors of the page by those of matplotlib; without the page's style sheet the latter hold.
_VARIABLES = {INK: "ink", COLORS[0].lower(): "curve", FAINT: "faint"}
_PARAMETERS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "geofloor",
    "font.size": 10.0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class FigureData(NamedTuple):
    """What is drawn. Losses are in nats per token."""

    widths: list[int]  # dimensions
    least: list[float] | None  # that no student gets below
    runs: list[tuple[int, float]]  # width and loss
    target: float | None
    losses: list[float] | None = None  # forecast
    low: list[float] | None = None  # ends of the interval
    high: list[float] | None = None
    level: float = 0.9
    top: float | None = None  # of the axis of losses


def figure_html(plan: Plan, table: pd.DataFrame, headline: str, *, interactive: bool) -> str:
    """Return the figure of a plan as HTML, or an empty string where there is nothing to draw.

    Parameters
    ----------
    plan : Plan
        The plan. Without forecasts, the bound is drawn alone.
    table : DataFrame
        Its table.
    headline : str
        Its verdict, for those who can't see the figure.
    interactive : bool
        Whether to draw it with plotly.js as well, if plotly is installed. That adds about 5 MB.
    """
    drawn = _draw(plan, table)
    if drawn is None:
        return ""
    data, pictures = drawn
    caption = _caption(plan, data)
    label = html.escape(" ".join(filter(None, (caption, _values(data, table), headline))), quote=True)
    parts = [
        f'<div class="picture {name}" role="img" aria-label="{label}">{picture}</div>'
        for name, picture in zip(("wide", "narrow"), pictures, strict=True)
    ]
    engine = _plotly() if interactive else None
    scripts = ""
    if engine is not None:
        values = {**data._asdict(), "interval": f"{100 * data.level:g}% interval", "x": WIDTH_LABEL, "y": _LOSS_LABEL}
        parts.append(f'<div class="interactive" role="img" aria-label="{label}"></div>')
        parts.append(f'<script type="application/json">{_json(values)}</script>')
        own = resources.files("geofloor.planning").joinpath("report.js").read_text(encoding="utf-8")
        scripts = f"\n<script>{engine}</script>\n<script>\n{own}</script>"
    return f"<figure>\n{''.join(parts)}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>{scripts}"


def _caption(plan: Plan, data: FigureData) -> str:
    if data.losses is None:
        caption = "The least loss of any student over its width. No forecast is drawn."
    else:
        caption = (
            f"Forecast loss of students trained for {plan.n_steps:,} steps over their width, with its "
            f"{100 * data.level:g}% interval."
        )
    runs = " Points are students that were trained." if data.runs else ""
    return caption + runs + ("" if data.least is None else " No student gets into the gray region.")


def _values(data: FigureData, table: pd.DataFrame) -> str:
    """Return the values at the widths of the table in words."""
    if data.losses is None:
        least = table[["width", "impossible_below"]].to_numpy()
        return " ".join(f"Width {width:g}: {loss:.3g} at least." for width, loss in least)
    rows = table[["width", "forecast", "low", "high"]].to_numpy()
    return " ".join(f"Width {width:g}: {loss:.3g} ({low:.3g} to {high:.3g})." for width, loss, low, high in rows)


def _draw(plan: Plan, table: pd.DataFrame) -> tuple[FigureData, list[str]] | None:
    """Draw a plan in two sizes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    display = _forecast_display(plan)
    data = _bound_data(plan, table) if display is None else _data_of(display)
    if data is None:
        return None
    pictures = []
    for size in (_WIDE, _NARROW):
        with mpl.rc_context(_PARAMETERS):
            figure = Figure(figsize=size, layout="constrained")
            ax = figure.subplots()
            if display is None:
                _draw_bound(ax, data)
            else:
                display.plot(ax)
            if plan.bound is not None:
                ax.set_ylim(top=min(ax.get_ylim()[1], 1.05 * plan.bound.zero_width_loss_))
            data = data._replace(top=float(ax.get_ylim()[1]))
            handles, labels = ax.get_legend_handles_labels()
            if (legend := ax.get_legend()) is not None:
                legend.remove()
            figure.legend(
                handles,
                labels,
                loc="outside upper left",
                ncols=_LEGEND_COLUMNS[size],
                frameon=False,
                fontsize="small",
                scatteryoffsets=[0.5],
            )
            pictures.append(_svg(figure))
    return data, pictures


def _forecast_display(plan: Plan) -> Any:
    """Return the display of the forecast, or None if there is none, or an interval has no end that can be drawn."""
    from matplotlib.figure import Figure

    if plan.forecaster is None:
        return None
    try:
        return plan.plot(Figure().subplots())
    except ValueError:
        return None


def _data_of(display: Any) -> FigureData:
    """Read what a ForecastDisplay shows."""
    least = None if display.least is None else _numbers(display.least)
    runs = list(zip(_numbers(display.observed_widths), _numbers(display.observed), strict=True))
    low, high = (_numbers(end) for end in np.asarray(display.interval).T)
    return FigureData(
        _numbers(display.widths), least, runs, display.target, _numbers(display.losses), low, high, display.level
    )


def _bound_data(plan: Plan, table: pd.DataFrame) -> FigureData | None:
    """Return what is known without forecasts, or None if that is nothing or not to be trusted."""
    if "impossible_below" not in table:
        return None
    widths = {*(plan.settings.widths or ()), *(run.width for run in plan.runs)}
    at = np.unique(np.linspace(min(widths), max(widths), 512).round().astype(int)).tolist()
    longest = [(run.width, run.loss) for run in plan.runs if (run.n_steps or plan.n_steps) == plan.n_steps]
    return FigureData(at, plan._least(at), longest, plan.settings.target_kl)


def _draw_bound(ax: Any, data: FigureData) -> None:
    """Draw the bound, the runs and the target in the style of `ForecastDisplay`."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.fill_between(data.widths, 0.0, data.least, color=FAINT, alpha=0.35, linewidth=0, label="no student gets here")
    if data.runs:
        ax.scatter(*zip(*data.runs, strict=True), s=36.0, color=INK, label="distilled", zorder=3)
    if data.target is not None:
        ax.axhline(data.target, color=FAINT, linestyle=":", label=f"target, {data.target:g}")
    ax.set(xlabel=WIDTH_LABEL, ylabel=_LOSS_LABEL)
    set_scale(ax, "linear", from_zero=True)


def _svg(figure: Any) -> str:
    """Return a figure as SVG to stand in HTML: colors and font of the page, ids of its own, nothing from elsewhere."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg aria-hidden="true" focusable="false"', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var(--{_VARIABLES[found[0]]}, {found[0]})" if found[0] in _VARIABLES else found[0],
        svg,
    )
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([\w.-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    salt = hashlib.sha256(svg.encode()).hexdigest()[:8]
    for number, name in enumerate(used):
        svg = re.sub(rf'(id="|#){re.escape(name)}\b', rf"\g<1>geofloor-{salt}-{number}", svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _plotly() -> str | None:
    """Return plotly.js, or None if plotly is not installed."""
    try:
        engine: str = importlib.import_module("plotly.offline").get_plotlyjs()
    except (ImportError, AttributeError, OSError):
        return None
    return engine


def _json(values: dict[str, Any]) -> str:
    """Return JSON that no text in it can end."""
    return json.dumps(values).replace("<", "\\u003c")


def _numbers(values: Any) -> list[Any]:
    return np.asarray(values).tolist()
