"""Losses by width, size or training that others published."""

from __future__ import annotations

import math
from importlib.resources import files

import pandas as pd

from geofloor.datasets._paper import load_paper_tables

_CITATIONS = {
    "geometric limits": "Sarkar and Deka (2026), arXiv:2604.04037, Table 3; widths and parameters from Table 8",
    "SliceGPT": "Ashkboos et al. (2024), arXiv:2401.15024, Table 1; widths: hidden size times the share kept, rounded "
    "down to a multiple of 8",
    "open_lm grid": "Gadre et al. (2024), arXiv:2403.08540, github.com/mlfoundations/scaling, exp_data/grid.json (MIT)",
    "open_lm models": "Gadre et al. (2024), arXiv:2403.08540, github.com/mlfoundations/scaling, exp_data/models (MIT)",
    "superposition scaling": "Liu et al. (2025), arXiv:2505.10465, github.com/liuyz0/SuperpositionScaling, "
    "LLMs/nonlinearfit-3.ipynb; loss = 476.0763 d^-0.9098 + limit",
    "ModelOpt": "NVIDIA Model Optimizer, examples/researcher_guide/README.md (Apache-2.0), 'Validation KD'",
    "Gemma 2": "Gemma Team (2024), arXiv:2408.00118, Table 7; whole perplexities",
    "MiniPLM": "Gu et al. (2024), arXiv:2410.17215; losses extrapolated to 1 and 10 trillion tokens",
    "Minitron": "Muralidharan et al. (2024), arXiv:2407.14679, Tables 10, 15 and 16",
    "BERT miniatures": "Turc et al. (2019), arXiv:1908.08962, github.com/google-research/bert, README.md",
    "MiniLMv2": "Wang et al. (2021), arXiv:2012.15828, github.com/microsoft/unilm, README.md",
    "Cerebras-GPT": "Dey et al. (2023), arXiv:2304.03208, model card of Cerebras-GPT (Apache-2.0), cross-entropy on "
    "the test split of The Pile; widths from the models' configurations",
}

_NUMBERS = (
    "width",
    "relative_width",
    "depth",
    "n_heads",
    "n_parameters",
    "n_tokens",
    "printed",
    "loss",
    "teacher_loss",
)


def load_published_losses() -> pd.DataFrame:
    """Load losses by width, size or training that others published, in nats per token.

    Returns
    -------
    table : DataFrame
        One row per published figure, new on every call. Missing figures are NaN. The columns are

        - ``source``: short name of the publication, and ``citation``: where the figure stands;
        - ``series``: rows of one source and series are to be compared with each other, and ``variant``: what else
          distinguishes a row, such as ``"sliced 10%"``;
        - ``kind``: ``"distilled"``, ``"from scratch"``, ``"sliced, untrained"``, ``"pruned, untrained"``,
          ``"pruned, distilled"``, or ``"fitted law"`` for constants of a law that the source fitted;
        - ``teacher``: name of the model that was distilled or sliced, or empty;
        - ``width`` in dimensions and ``relative_width``, the share of the teacher's;
        - ``depth`` (blocks), ``n_heads``, ``n_parameters``, ``n_tokens`` (of training);
        - ``metric``: ``"cross-entropy"``, ``"perplexity"``, ``"KL"``, ``"KL, T = 2"``,
          ``"cross-entropy above the limit"`` or ``"score"``;
        - ``printed``: the figure as printed, and ``loss``: the same in nats per token. It is the logarithm of a
          perplexity, and NaN for a score;
        - ``teacher_loss``: cross-entropy of the teacher on the same text, in nats per token.

    See Also
    --------
    load_paper_tables : All tables of the paper.
    geofloor.forecasting.forecast_table : Tries laws of the width on such series.

    Notes
    -----
    Losses of different sources are of different texts and tokenizers. Compare them within a series only. The batch size
    of the open_lm grid changes below width 512, and its loss rises there between some widths: use widths of 512 to
    1,024. Series of model suites vary in depth and training as well as in width.

    Examples
    --------
    >>> from geofloor.datasets import load_published_losses
    >>> table = load_published_losses()
    >>> table[table["kind"] == "distilled"].dropna(subset="width")[["source", "width", "loss"]].head(3)
                 source   width   loss
    0  geometric limits   128.0  1.320
    1  geometric limits   256.0  1.008
    2  geometric limits   512.0  0.733
    """
    text = files("geofloor.datasets").joinpath("published_losses.csv")
    with text.open(encoding="utf-8") as file:
        others = pd.read_csv(file, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ""))
    table = pd.concat([_paper(others.columns), others], ignore_index=True).astype(dict.fromkeys(_NUMBERS, float))
    table["citation"] = table["source"].map(_CITATIONS)
    return table


def _paper(columns: pd.Index) -> pd.DataFrame:
    """Bring the paper's Table 3 into the form of the others."""
    tables = load_paper_tables()
    students = tables.distillation.merge(tables.students, on="width")
    rows = pd.DataFrame(
        {
            "source": "geometric limits",
            "series": "Table 3",
            "variant": "",
            "kind": "distilled",
            "teacher": tables.teacher["name"].rpartition("/")[2],
            "width": students["width"],
            "relative_width": students["width"] / tables.teacher["width"],
            "depth": students["n_layers"],
            "n_heads": students["n_heads"],
            "n_parameters": 1e6 * students["parameters_millions_x"],
            "n_tokens": 30_000.0 * 32 * 512,
            "metric": "KL, T = 2",
            "printed": students["kl"],
            "loss": students["kl"],
            "teacher_loss": math.nan,
        }
    )
    return rows[list(columns)]
