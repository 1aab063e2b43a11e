"""The paper's tables, as printed."""

from __future__ import annotations

import json
from importlib.resources import files

import pandas as pd
from sklearn.utils import Bunch

_DESCRIPTION = """\
The tables of "Geometric Limits of Knowledge Distillation"
==========================================================

Every figure has the printed digits; nothing is recomputed or corrected. Missing figures are NaN. The
gallery example "The paper's tables, recomputed" shows inconsistent figures beside recomputed ones.

==================  =======================  ====================================================
table               in the paper             content
==================  =======================  ====================================================
sae                 Table 1                  sparse autoencoders on three layers of Pythia-410M
predicted_floor     Table 2                  Eq. 2 at layer 12, five student widths
distillation        Table 3                  measured KL of five students, T = 2, 30,000 steps
calibration         Table 4                  Eq. 3 fitted to Tables 2 and 3
decomposition       Table 5                  geometric share and baseline of each measured floor
probes              Table 6                  accuracy of linear probes for six concepts, layer 12
capacity            Table 7                  reference values of Eq. 1
students            Table 8                  architecture of the five students
power_law           Eq. 4                    a * width ** -gamma + c fitted to Table 3
toy_sweep           Section 4, Figure 2      the 48 configurations of the toy model
toy_accuracy        Section 4, Figure 3      agreement of Eq. 2 with the toy model's floors
==================  =======================  ====================================================

Units: floors of Table 2 are in the teacher's hidden-space units (squared activation); `kl`,
`observed`, `geometric` and `baseline` in nats per token; `raw_kl` is `kl` summed over 512 positions
and multiplied by the squared temperature, 4.

Source: N. Sarkar and D. J. Deka (2026). Geometric Limits of Knowledge Distillation: A Minimum-Width
Theorem via Superposition Theory. arXiv:2604.04037v2 [cs.LG]. Licensed CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/. Changes: column names, and Table 6 in long form.
"""


def load_paper_tables() -> Bunch:
    """Load the paper's tables as tidy data frames, with the figures as printed.

    Returns
    -------
    tables : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with new data frames on every call.

        sae : DataFrame of shape (3, 6)
            Table 1, one row per layer: `layer`, `n_features` (alive), `mean_l0` (active features per
            token), `alpha`, `capacity` (features per dimension), `critical_width`.
        predicted_floor : DataFrame of shape (5, 5)
            Table 2, layer 12: `width`, `kept` and `dropped` (features), `floor` (hidden-space
            units), `normalized` (floor relative to width 128).
        distillation : DataFrame of shape (5, 5)
            Table 3: `width`, `parameters_millions`, `raw_kl` (summed over 512 positions, times
            T² = 4), `kl` (nats per token), `normalized`.
        calibration : DataFrame of shape (2, 4)
            Table 4: `fit` ("linear" or "affine"), `slope` (nats per token and hidden-space unit),
            `baseline` (nats per token), `r2`.
        decomposition : DataFrame of shape (5, 5)
            Table 5: `width`, `observed`, `geometric`, `baseline` (nats per token),
            `percent_geometric`.
        probes : DataFrame of shape (24, 4)
            Table 6: `concept`, `model` ("teacher" or "student"), `width`, `accuracy_percent`.
        capacity : DataFrame of shape (8, 2)
            Table 7: `alpha`, `capacity`.
        students : DataFrame of shape (5, 6)
            Table 8: `width`, `n_layers`, `n_heads`, `feed_forward_width`, `parameters_millions`,
            `compression` (teacher's parameters divided by the student's).
        power_law : DataFrame of shape (1, 4)
            Eq. 4: `a`, `gamma`, `c`, `r2`.
        toy_sweep : DataFrame of shape (48, 3)
            Section 4, one row per configuration: `n_features`, `alpha`, `teacher_width`.
        toy_accuracy : DataFrame of shape (2, 5)
            Figure 3: `predictor` ("refined" is Eq. 2, "naive" allows one feature per dimension),
            `n_points`, `pearson_r`, `mape_percent`, `r2`.
        teacher : dict
            `name`, `width`, `n_layers` and `vocabulary` of the teacher.
        DESCR : str
            Description, source and license.

    References
    ----------
    .. [1] N. Sarkar and D. J. Deka (2026). Geometric Limits of Knowledge Distillation.
       arXiv:2604.04037v2, CC BY 4.0.

    Examples
    --------
    >>> from geofloor.datasets import load_paper_tables
    >>> tables = load_paper_tables()
    >>> tables.sae[["layer", "n_features", "capacity", "critical_width"]]
       layer  n_features  capacity  critical_width
    0      8       31006     27.04            1147
    1     12       28665     26.92            1065
    2     16       29169     24.60            1186
    """
    content = json.loads(files("geofloor.datasets").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    tables = {name: pd.DataFrame(table["rows"], columns=table["columns"]) for name, table in content["tables"].items()}
    grid = pd.MultiIndex.from_product(content["toy_sweep"].values(), names=content["toy_sweep"])
    return Bunch(
        **tables,
        toy_sweep=grid.to_frame(index=False),
        teacher=content["teacher"],
        DESCR=_DESCRIPTION,
    )
