"""
On other people's numbers
=========================

A law of the width found on one's own students need not hold for others. This script tries every law on losses that
others published: forecast all widths from two runs, and compare. No model is loaded.
"""

# %%
# The numbers
# -----------
# Series in which the width changes: the paper's students, models trained from scratch, and slices of ten models that
# were not trained after slicing. Of slices the excess over the model's own loss is taken, which is 0 at its own width.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from geofloor import LossForecaster
from geofloor.datasets import load_published_losses
from geofloor.forecasting import EndsAtTeacher, forecast_table

table = load_published_losses()
students = {"paper, Table 3": table[table["source"] == "geometric limits"]}
scratch = table.query("source == 'open_lm grid' and variant == 'best of the grid'")
suites = table.query("source == 'Cerebras-GPT'").drop_duplicates(["series", "width"], keep="last")
dense = table.query("variant == 'dense' and series.str.startswith('OPT')").assign(series="OPT, WikiText-2")
for rows in (scratch, suites, dense):
    students |= {str(name): series for name, series in rows.groupby("series", sort=False)}
slices = table.query("kind == 'sliced, untrained'").eval("loss = loss - teacher_loss")
students |= {f"{name}, sliced": series for name, series in slices.groupby("series", sort=False)}
students = {name: series.sort_values("width") for name, series in students.items()}
for name, citation in table.drop_duplicates("source")[["source", "citation"]].itertuples(index=False):
    if name in ("geometric limits", "open_lm grid", "Cerebras-GPT", "SliceGPT"):
        print(f"{name}: {citation}")

# %%
# Every law on every set
# ----------------------
# The median error of forecasts from two runs, the widest and one more: first the median over the other widths, then
# over the choice of the second run. ``LossForecaster()`` knows nothing besides the two runs. Of slices it may also know
# the model's own width and that they start from principal directions. Its priors were fitted to the paper's students,
# the slices, and the grid (its depths) from width 512 on, not to the suites Cerebras-GPT, Pythia and OPT. See
# ``benchmarks/calibration.py`` for priors without the teacher tested.


def laws(series: pd.DataFrame) -> dict[str, LossForecaster]:
    found = {
        "power": LossForecaster("power"),
        "exponential": LossForecaster("exponential"),
        "auto": LossForecaster(),
    }
    if (series["relative_width"] < 1).all():
        own = float(series["width"].iloc[0] / series["relative_width"].iloc[0])
        found["ends at teacher"] = LossForecaster(EndsAtTeacher(own))
        found["auto, own width"] = LossForecaster(teacher_width=own, students="principal")
    return found


errors = {}
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The loss rises with width")  # where the grid changes its batch size
    for name, series in students.items():
        errors[name] = forecast_table(laws(series), series["width"], series["loss"])["two_runs"]
print(pd.DataFrame(errors).T.to_string(float_format="{:.1%}".format, na_rep=""))

# %%
# Six of them
# -----------
# Two runs, marked by squares, and what follows from them. The band is the 90% interval of ``LossForecaster()``. Laws
# agree between the runs and part beyond them, where the band is wide.

shown = "paper, Table 3", "depth 16", "Cerebras-GPT", "Pythia", "OPT-125M, sliced", "Llama-2-70B, sliced"
figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
for ax, name in zip(axes.flat, shown, strict=True):
    widths, losses = (students[name][column].to_numpy() for column in ("width", "loss"))
    runs = [len(widths) // 2, -1]
    every = np.unique(np.geomspace(0.8 * widths[0], 1.1 * widths[-1], 60).astype(int))
    for law, style in zip(("power", "exponential", "auto"), (":", "--", "-"), strict=True):
        fitted = LossForecaster(law).fit(widths[runs], losses[runs])
        forecast, interval = fitted.predict(every, return_interval=True)
        (line,) = ax.plot(every, forecast, style, label=law)
    ax.fill_between(every, *interval.T, color=line.get_color(), alpha=0.15)
    ax.plot(widths, losses, "ko", markersize=4, label="published")
    ax.plot(widths[runs], losses[runs], "ks", markersize=7, fillstyle="none", label="the two runs")
    ax.set(title=name, xscale="log", xlabel="width", ylabel="nats per token", ylim=(0.6 * losses[-1], 1.3 * losses[0]))
    ax.set_xticks(widths[[0, -1]], labels=[f"{width:g}" for width in widths[[0, -1]]], minor=False)
    ax.minorticks_off()
axes[0, 0].legend()
plt.show()
