"""The miniature of the whole paper: its Tables 1 to 6 on the embedded teacher, with the paper's beside them.

    python benchmarks/distilled_floors.py --work distilled-work --device cuda
    python benchmarks/forecasts.py --work distilled-work --only-measure
    python benchmarks/probes.py --work distilled-work
    python benchmarks/miniature.py --work distilled-work

Without `--work` everything comes from what these left in results/: the students' floors, the accuracies of the
probes, and the feature tables, which `--work` copies to results/miniature_features.npz. It takes a minute. The paper's
five widths are 1/8, 1/4, 1/2, 3/4 and 1 of its teacher's, and stand beside ours of the same share. Students are at a
budget of steps, not converged: see the table "The budget".
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from geofloor import AffineCalibrator, FloorPredictor, PowerLawCalibrator
from geofloor.datasets import load_paper_tables
from geofloor.features import power_law_tail
from geofloor.forecasting import CapacityCalibrator, forecast_table
from geofloor.theory import capacity, critical_width

RESULTS = Path(__file__).parent / "results"
FEATURES = RESULTS / "miniature_features.npz"
LAYERS = (0, 1, 2, 3)
LAYER = 2  # of the tables that have one: where concepts are probed, and where the main job measures
TEACHER_WIDTH = 128
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of the teacher's width: the paper's
BANDS = (1, 10, 100, 1000)  # ranks between which slopes are taken
PAPER_BETA = 3.05  # Section 6.3
PREDICTORS = {
    "Eq. 2": {},
    "Eq. 2, exact g": {"capacity": "minimax_nonnegative"},
    "auto, one ReLU layer": {"allocation": "auto", "curve": "relu"},
    "auto, deep": {"allocation": "auto", "curve": "deep"},
}
# Floors at each whole width, where forecasts.py measured them.
ABLATIONS = {"latents": "teacher without latents", "components": "teacher without components"}


def keep(work: Path) -> None:
    """Copy what forecasts.py measured at each layer to one small file of plain arrays."""
    arrays = {"explained_variance": np.empty(len(LAYERS))}
    for layer in LAYERS:
        with np.load(work / f"layer-{layer}.npz") as stored:
            arrays[f"table_{layer}"] = stored["table"].astype(np.float32)
            for name in ("variances", *ABLATIONS):
                if name in stored:
                    arrays[f"{name}_{layer}"] = stored[name]
            found = re.search(r"explained variance ([\d.]+)", str(stored["description"]))
            arrays["explained_variance"][layer] = float(found[1])
    np.savez_compressed(FEATURES, **arrays)


def show(table: pd.DataFrame, formats: dict[str, str] | None = None, *, index: bool = False) -> None:
    formatters = {name: text.format for name, text in (formats or {}).items() if name in table}
    text = table.to_string(index=index, formatters=formatters, float_format="{:.4g}".format, na_rep="")
    print("\n".join(line.rstrip() for line in text.splitlines()))


def title(text: str) -> None:
    print(f"\n=== {text}")


def beside(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Our rows with the paper's at the same share of the teacher's width, marked P."""
    ours = ours.copy()
    ours.insert(1, "d/d_T", ours["width"] / TEACHER_WIDTH)
    paper = paper.sort_values("width").drop(columns="width").add_prefix("P ").assign(**{"d/d_T": SHARES})
    return ours.merge(paper, on="d/d_T", how="left")


def table_1(features, paper) -> None:
    title("Table 1: features measured by sparse autoencoders")
    ours = pd.DataFrame(
        {
            "after block": LAYERS,
            "expl. var.": features["explained_variance"],
            "L0": [features[f"table_{layer}"][:, 1].sum() for layer in LAYERS],
            "F": [len(features[f"table_{layer}"]) for layer in LAYERS],
        }
    )
    ours["alpha"] = 1 - ours["L0"] / ours["F"]
    ours["g"] = capacity(ours["alpha"])
    ours["d*"] = critical_width(ours["F"].to_numpy(), ours["alpha"].to_numpy())
    ours["d*/d_T"] = ours["d*"] / TEACHER_WIDTH
    formats = {
        "expl. var.": "{:.3f}",
        "L0": "{:.1f}",
        "alpha": "{:.4f}",
        "g": "{:.2f}",
        "d*": "{:,.0f}",
        "d*/d_T": "{:.2f}",
        "F": "{:,}",
    }
    print(f"ours, teacher's width d_T = {TEACHER_WIDTH}")
    show(ours, formats)
    sae = paper.sae.set_axis(["layer", "F", "L0", "alpha", "g", "d*"], axis=1)
    sae["d*/d_T"] = sae["d*"] / paper.teacher["width"]
    print(f"\nthe paper, d_T = {paper.teacher['width']} (no explained variance is given)")
    show(sae, formats)
    above = int((ours["d*/d_T"] > 1).sum())
    print(f"\nd* is above the teacher's width after {above} of {len(ours)} blocks; in the paper at 3 of 3 layers")

    title("Figure 5a: are importances a power law?")
    print("a law with density exponent beta has the slope -1/(beta - 1) of log importance over log rank, at all ranks")
    rows = []
    for layer in LAYERS:
        importances = np.sort(features[f"table_{layer}"][:, 0].astype(np.float64))[::-1]
        tail = power_law_tail(importances, level=0.95)
        edges = [*BANDS, len(importances)]
        logs = np.log(np.arange(1, len(importances) + 1)), np.log(importances)
        slopes = {
            f"slope {low:,}-{f'{high:,}' if high < len(importances) else 'F'}": np.polyfit(
                *(values[low - 1 : high] for values in logs), 1
            )[0]
            for low, high in itertools.pairwise(edges)
        }
        rows.append(
            {
                "after block": layer,
                "beta": tail.exponent,
                "95% interval": "{:.2f} to {:.2f}".format(*tail.interval),
                "features in its tail": f"{tail.n_tail:,} of {len(importances):,}",
                **slopes,
                "top 20's share": importances[:20].sum() / importances.sum(),
            }
        )
    formats = {name: "{:.2f}" for name in rows[0] if name.startswith("slope")} | {"beta": "{:.2f}"}
    show(pd.DataFrame(rows), {**formats, "top 20's share": "{:.1%}"})
    print(f"the paper: beta of {PAPER_BETA}, a slope of {-1 / (PAPER_BETA - 1):.2f}, and a cliff near rank 3,000")


def table_2(predictors, widths, paper) -> None:
    title(f"Table 2: floors that Eq. 2 predicts, after block {LAYER} (P: the paper, layer 12)")
    predictor = predictors[LAYER]
    floors, kept = predictor.predict(widths), predictor.kept_features(widths)
    reference = predictor.predict([SHARES[0] * TEACHER_WIDTH])[0]
    ours = pd.DataFrame(
        {
            "width": widths,
            "kept": kept,
            "dropped": predictor.n_features_ - kept,
            "dropped %": 100 * (1 - kept / predictor.n_features_),
            "floor": floors,
            "of the total %": 100 * floors / predictor.importances_.sum(),
            "normalized": floors / reference,
        }
    )
    theirs = paper.predicted_floor
    theirs = pd.DataFrame(
        {
            "width": theirs["width"],
            "dropped": theirs["dropped"],
            "dropped %": 100 * theirs["dropped"] / (theirs["kept"] + theirs["dropped"]),
            "floor": theirs["floor"],
            "normalized": theirs["normalized"],
        }
    )
    formats = {"d/d_T": "{:.4g}", "dropped %": "{:.1f}", "P dropped %": "{:.1f}", "normalized": "{:.3f}"}
    formats |= {"floor": "{:.2f}", "of the total %": "{:.0f}", "P floor": "{:.4f}", "P normalized": "{:.3f}"}
    formats |= dict.fromkeys(("kept", "dropped", "P dropped"), "{:,.0f}")
    show(beside(ours, theirs), formats)
    falls = all((np.diff(each.predict(widths)) < 0).all() for each in predictors.values())
    print(f"predicted floors fall strictly with width after each block: {'yes' if falls else 'no'}")
    print("floors are in hidden-space units of each teacher; only normalized ones can be compared")


def table_3(runs, paper) -> pd.DataFrame:
    """Prints the table; returns floors by width of the longer runs, seed 0."""
    few, many = sorted(runs["n_steps"].unique())
    title(f"Table 3: floors of distilled students, {many:,} steps (P: the paper, 30,000 steps)")
    print("floors at a budget: students have not converged, and the wider the looser (see the change below)")
    settings = json.loads((RESULTS / "distilled_floors.json").read_text(encoding="utf-8"))["settings"]
    chosen = runs[(runs["n_steps"] == many) & (runs["seed"] == 0)].set_index("width")
    positions = int(chosen["n_tokens"].iloc[0] / many / settings["batch_size"])
    factor = positions * settings["temperature"] ** 2
    reference = chosen["floor"][int(SHARES[0] * TEACHER_WIDTH)]
    ours = pd.DataFrame(
        {
            "width": chosen.index,
            "params": chosen["n_parameters"].to_numpy(),
            "ratio": chosen["n_parameters"].max() / chosen["n_parameters"].to_numpy(),
            "raw KL": factor * chosen["floor"].to_numpy(),
            "KL per token": chosen["floor"].to_numpy(),
            "error": chosen["floor_error"].to_numpy(),
            "normalized": (chosen["floor"] / reference).to_numpy(),
        }
    )
    theirs = paper.distillation.rename(columns={"kl": "KL", "raw_kl": "raw KL"})
    formats = {"params": "{:,}", "ratio": "{:.1f}", "raw KL": "{:.1f}", "KL per token": "{:.4f}", "error": "{:.4f}"}
    formats |= {"normalized": "{:.3f}", "P KL": "{:.3f}", "P normalized": "{:.3f}", "P raw KL": "{:.0f}"}
    show(beside(ours, theirs[["width", "raw KL", "KL", "normalized"]]), formats)
    print(f"raw KL = per token x {positions} positions x T^2 = {factor:g} x; the paper's is 512 x 4 = 2,048 x")
    falls = bool((np.diff(chosen["floor"]) < 0).all())
    print(f"floors fall strictly with width: {'yes' if falls else 'no'}; in the paper: yes")

    title(f"The budget: what {many / few:g} times the steps change, and seeds")
    floors = runs[runs["seed"] == 0].pivot_table(index="width", columns="n_steps", values="floor")
    floors["change"] = floors[many] / floors[few] - 1
    names = {few: f"{few:,} steps", many: f"{many:,} steps"}
    formats = dict.fromkeys(names.values(), "{:.4f}") | {"change": "{:+.1%}"}
    show(floors.rename(columns=names).reset_index().rename_axis(columns=None), formats)
    print("the paper: 40,000 steps instead of 30,000 lower the floor at 1/8 of the width by 2.8%")
    seeds = runs[runs["seed"] == 1].set_index(["n_steps", "width"])["floor"]
    for (n_steps, width), floor in seeds.items():
        change = floor / floors.loc[width, n_steps] - 1
        print(f"width {width}, {n_steps:,} steps: seed 1 is {change:+.1%} off seed 0; the paper, at 1/8: 0.24%")
    return chosen["floor"]


def affine_fits(floors, observed) -> dict[str, float]:
    """The fits of Table 4: without a baseline, with a free one, with that of the widest student."""
    linear = AffineCalibrator(baseline=0.0).fit(floors, observed)
    free = AffineCalibrator().fit(floors, observed)
    fixed = AffineCalibrator(baseline=observed[-1]).fit(floors, observed)
    others = AffineCalibrator(baseline=observed[-1]).fit(floors[:-1], observed[:-1])
    return {
        "C, B = 0": linear.slope_,
        "R2, B = 0": linear.r2_,
        "C": free.slope_,
        "B": free.baseline_,
        "R2": free.r2_,
        "C, B fixed": fixed.slope_,
        "B fixed": observed[-1],
        "R2, B fixed": fixed.r2_,
        "R2 of the others": others.r2_,
    }


def table_4(features, predictors, observed, paper) -> None:
    title("Table 4: calibrations, observed = C x floor + B")
    print("floors at a budget; B = 0, B fitted, and B fixed at the floor of the student of the teacher's own width.")
    print("The last column is the R2 of the latter fit to the other students, over these.")
    fits = {}
    for name, chosen in (("8 to 128", observed), ("the paper's 5", observed.loc[_at_shares()])):
        for layer in LAYERS:
            floors = predictors[layer].predict(chosen.index.to_numpy())
            fits[f"after block {layer}, widths {name}"] = affine_fits(floors, chosen.to_numpy())
    theirs = paper.predicted_floor["floor"].to_numpy(), paper.distillation["kl"].to_numpy()
    fits["the paper, recomputed from its Tables 2 and 3"] = affine_fits(*theirs)
    printed = paper.calibration.set_index("fit")
    fits["the paper, as printed"] = {
        "C, B = 0": printed.slope["linear"],
        "R2, B = 0": printed.r2["linear"],
        "C": printed.slope["affine"],
        "B": printed.baseline["affine"],
        "R2": printed.r2["affine"],
        "B fixed": paper.decomposition["baseline"].iloc[0],
    }
    table = pd.DataFrame.from_dict(fits, orient="index")
    formats = {name: ("{:.3f}" if "R2" in name or name in ("B", "B fixed") else "{:.3g}") for name in table}
    show(table, formats, index=True)

    title("Equation 4: a power law of the width alone, a d^-gamma + c")
    laws = {
        "ours, widths 8 to 128": observed,
        "ours, the paper's 5": observed.loc[_at_shares()],
        "the paper, recomputed from its Table 3": pd.Series(theirs[1], paper.distillation["width"]),
    }
    rows = {}
    for name, losses in laws.items():
        law = PowerLawCalibrator().fit(losses.index.to_numpy(), losses.to_numpy())
        rows[name] = {"a": law.scale_, "gamma": law.exponent_, "c": law.offset_, "R2": law.r2_}
    rows["the paper, as printed"] = paper.power_law.iloc[0].rename({"r2": "R2"}).to_dict()
    show(pd.DataFrame.from_dict(rows, orient="index"), {"R2": "{:.3f}"}, index=True)

    title("Eq. 2 beside other predictors and rivals, widths 8 to 128, by block")
    print(
        "R2 with B fitted; median errors at a width left out, and of forecasts from two runs, the widest and one more"
    )
    columns = {}
    for layer in LAYERS:
        found = forecasts(features, predictors[layer], layer, observed)
        for name, column in (("R2", "r2"), ("left out", "left_out"), ("two runs", "two_runs")):
            columns[name, layer] = found[column].map(("{:.3f}" if name == "R2" else "{:.1%}").format)
    table = pd.DataFrame(columns)
    show(table[["R2", "left out", "two runs"]].replace("nan%", ""), index=True)


def forecasts(features, predictor, layer: int, observed: pd.Series) -> pd.DataFrame:
    """How predictors and rivals fit the losses, and forecast those that they have not seen."""
    table, tails = features[f"table_{layer}"], np.cumsum(features[f"variances_{layer}"][::-1])[::-1]
    tails = np.append(tails, 0.0)
    floors = {name: FloorPredictor(**settings).fit(table).transform for name, settings in PREDICTORS.items()}
    floors |= {
        label: lambda at, losses=features[f"{name}_{layer}"]: losses[at]
        for name, label in ABLATIONS.items()
        if f"{name}_{layer}" in features
    }
    floors |= {"variance outside d components": lambda at: tails[at], "a - b log d": lambda at: -np.log(at)}
    estimators = {name: make_pipeline(FunctionTransformer(each), AffineCalibrator()) for name, each in floors.items()}
    estimators["Eq. 2, B = 0"] = make_pipeline(FunctionTransformer(floors["Eq. 2"]), AffineCalibrator(baseline=0.0))
    estimators["Eq. 2, capacity kappa g"] = CapacityCalibrator(FrozenEstimator(predictor))
    estimators["power law (Eq. 4)"] = PowerLawCalibrator()
    order = ["Eq. 2", "Eq. 2, B = 0", "Eq. 2, capacity kappa g"]
    order += [name for name in estimators if name not in order]
    return forecast_table(estimators, observed.index.to_numpy(), observed.to_numpy()).loc[order]


def table_5(predictors, observed, paper) -> None:
    title(f"Table 5: decomposition, Eq. 2 after block {LAYER}, nats per token (P: the paper)")
    floors = predictors[LAYER].predict(observed.index.to_numpy())
    losses = observed.to_numpy()
    fits = {
        f"B fixed at the floor of width {TEACHER_WIDTH}, C fitted to all": AffineCalibrator(baseline=losses[-1]),
        "both fitted": AffineCalibrator(),
    }
    theirs = paper.decomposition.rename(columns={"percent_geometric": "% geom."})
    theirs = theirs[["width", "observed", "geometric", "baseline", "% geom."]]
    for name, calibrator in fits.items():
        parts = calibrator.fit(floors, losses).decompose(floors, losses)
        ours = parts.rename(columns={"percent_geometric": "% geom."}).assign(width=observed.index)
        ours = ours[["width", "observed", "geometric", "baseline", "residual", "% geom."]]
        formats = dict.fromkeys(("observed", "geometric", "baseline", "residual"), "{:.3f}")
        formats |= {f"P {each}": "{:.3f}" for each in ("observed", "geometric", "baseline")}
        print(name)
        show(beside(ours, theirs), {**formats, "% geom.": "{:.1f}", "P % geom.": "{:.1f}"})
        print()
    print("% geom. is (observed - B) / observed, as in the paper: it knows nothing of the prediction")


def table_6(probes, paper) -> None:
    title(f"Table 6: accuracy of linear probes after block {LAYER}, per cent")
    models = ["teacher", *(f"width {int(share * TEACHER_WIDTH)}" for share in SHARES[::-1]), "width 8"]
    ours = 100 * probes.pivot_table(index="concept", columns="model", values="accuracy", sort=False)[models]
    theirs = paper.probes
    models_of_paper = np.where(theirs["model"] == "teacher", "teacher", "width " + theirs["width"].astype(str))
    theirs = theirs.assign(model=models_of_paper).pivot_table(
        index="concept", columns="model", values="accuracy_percent", sort=False
    )
    for name, table in (
        (f"ours: {probes['n_test'].max():,} examples, five-fold cross-validation", ours),
        ("the paper: 4,000 examples, one split, layer 12", theirs),
    ):
        changes = table.drop(columns="teacher").sub(table["teacher"], axis=0)
        summary = pd.DataFrame(
            {
                "mean": table.mean(),
                "mean absolute change": changes.abs().mean(),
                "largest fall": changes.min(),
                "lowest accuracy": table.min(),
            }
        ).T
        print(name)
        whole = pd.concat([table, summary[table.columns]])
        show(whole.rename_axis(columns=None, index=None), dict.fromkeys(whole.columns, "{:.1f}"), index=True)
        print()
    differ = probes[probes["p_value"] < 0.05].groupby("model").size().reindex(models[1:], fill_value=0)
    print("concepts that differ from the teacher (exact McNemar, p < 0.05, not corrected for their number):")
    print(", ".join(f"{model}: {count} of {probes['concept'].nunique()}" for model, count in differ.items()))


def figure_17(runs, predictors, paper) -> None:
    title("Figure 17: floors relative to 1/8 of the teacher's width, observed and by Eq. 2 (P: the paper)")
    floors = runs[runs["seed"] == 0].pivot_table(index="width", columns="n_steps", values="floor").loc[_at_shares()]
    table = pd.DataFrame({"d/d_T": SHARES})
    for n_steps in floors.columns[::-1]:
        table[f"{n_steps:,} steps"] = (floors[n_steps] / floors[n_steps].iloc[0]).to_numpy()
    for layer in LAYERS:
        predicted = predictors[layer].predict(floors.index.to_numpy())
        table[f"after block {layer}"] = predicted / predicted[0]
    table["P observed"] = paper.distillation["normalized"]
    table["P predicted"] = paper.predicted_floor["normalized"]
    show(table, dict.fromkeys(table.columns[1:], "{:.3f}"))
    print(
        "R2 of the normalized prediction itself, nothing fitted, over these points, of which the first is always met:"
    )
    for n_steps in floors.columns[::-1]:
        scores = {layer: r2_score(table[f"{n_steps:,} steps"], table[f"after block {layer}"]) for layer in LAYERS}
        print(f"{n_steps:,} steps: " + ", ".join(f"{r2:.2f} after block {layer}" for layer, r2 in scores.items()))
    print(f"the paper: {r2_score(table['P observed'], table['P predicted']):.2f}")


def _at_shares() -> list[int]:
    return [int(share * TEACHER_WIDTH) for share in SHARES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of forecasts.py, to copy its feature tables from")
    options = parser.parse_args()
    if options.work is not None:
        keep(options.work)
    with np.load(FEATURES) as stored:
        features = dict(stored)
    content = json.loads((RESULTS / "distilled_floors.json").read_text(encoding="utf-8"))
    runs = pd.DataFrame(content["runs"])
    probes = pd.read_csv(RESULTS / "probes.csv", comment="#")
    paper = load_paper_tables()
    predictors = {layer: FloorPredictor().fit(features[f"table_{layer}"]) for layer in LAYERS}
    table_1(features, paper)
    table_2(predictors, np.sort(runs["width"].unique()), paper)
    observed = table_3(runs, paper)
    table_4(features, predictors, observed, paper)
    table_5(predictors, observed, paper)
    figure_17(runs, predictors, paper)
    table_6(probes, paper)


if __name__ == "__main__":
    main()
