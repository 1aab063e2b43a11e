"""Compare students of one width that differ in one choice: start, order of the text, seed, or number of heads.

    python benchmarks/starts.py

It reads the floors that distilled_floors.py left in results/ and trains nothing. A difference is the second floor over
the first, less one.
"""

from __future__ import annotations

import json

import pandas as pd
from forecasts import RESULTS

PRINCIPAL = "distilled_floors_principal"
STARTS = {  # what principal starts are compared with, at which numbers of steps
    "embedded teacher, random starts by Muon": ("distilled_floors_muon", PRINCIPAL, 2000, 2000),
    "embedded teacher, random starts by AdamW": ("distilled_floors", PRINCIPAL, 3000, 2000),
    "second teacher, random starts by AdamW": ("second_teacher_floors", "second_teacher_floors_principal", 2000, 2000),
}
ORDERS = {
    f"embedded teacher, {n_steps} steps": (PRINCIPAL, f"{PRINCIPAL}_other_order", n_steps, n_steps)
    for n_steps in (1000, 2000)
}
SEEDS = {"distilled_floors": "AdamW", "distilled_floors_muon": "Muon", "second_teacher_floors": "second, AdamW"}
HEADS = {  # with Table 8's numbers of heads first
    "four heads": (PRINCIPAL, f"{PRINCIPAL}_four_heads", 1000, 1000),
    "two heads": (PRINCIPAL, f"{PRINCIPAL}_two_heads", 1000, 1000),
    "one head": (PRINCIPAL, f"{PRINCIPAL}_one_head", 1000, 1000),
}
FOUR_FOR_TWO = {
    f"four heads for two, {n_steps} steps": (f"{PRINCIPAL}_other_widths", f"{PRINCIPAL}_heads", n_steps, n_steps)
    for n_steps in (1000, 2000)
}


def floors(name: str) -> pd.DataFrame:
    """Tabulate the floors of a file by width, with a column for each number of steps and seed."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return pd.DataFrame(found["runs"]).pivot_table(index="width", columns=["n_steps", "seed"], values="floor")


def tokens_per_step(name: str) -> int:
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found["runs"][0]["n_tokens"] // found["runs"][0]["n_steps"]


def differences(pairs: dict[str, tuple[str, str, int, int]]) -> pd.DataFrame:
    """Tabulate the differences, in columns by their titles, at the widths that both files have."""
    found = {
        title: floors(second)[after, 0] / floors(first)[before, 0] - 1.0
        for title, (first, second, before, after) in pairs.items()
    }
    return pd.DataFrame(found).dropna(how="all").sort_index()


def show(title: str, table: pd.DataFrame) -> None:
    print(f"\n=== {title}")
    print(table.to_string(float_format="{:+.1%}".format, na_rep=""))


def main() -> None:
    print("floors, nats per token at T = 2")
    for title, (first, second, before, after) in STARTS.items():
        print(f"\n=== {title}, {before} steps of {tokens_per_step(first):,} tokens")
        print(f"principal starts by Muon, {after} steps of {tokens_per_step(second):,} tokens")
        both = pd.DataFrame({"random": floors(first)[before, 0], "principal": floors(second)[after, 0]}).dropna()
        both["difference"] = (both["principal"] / both["random"] - 1.0).map("{:+.1%}".format)
        print(both.to_string(float_format="{:.4f}".format))
    show("principal starts, another order of the text", differences(ORDERS))
    print("\n=== random starts, seed 1 over seed 0, less one")
    for name, title in SEEDS.items():
        table = floors(name)
        for n_steps in table.columns.levels[0]:
            change = (table[n_steps, 1] / table[n_steps, 0] - 1.0).dropna()
            print(f"{title}, {n_steps} steps: " + ", ".join(f"{at}: {each:+.1%}" for at, each in change.items()))
    show("heads, over Table 8's: 1, 1, 1, 2, 3, 4, 4 at widths 8 to 96; 1000 steps", differences(HEADS))
    show("heads where a quarter of a head is odd", differences(FOUR_FOR_TWO))


if __name__ == "__main__":
    main()
