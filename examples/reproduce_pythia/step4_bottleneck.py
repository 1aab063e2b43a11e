"""
Step 4: tokens → bottleneck
===========================

Fit the best logits of each width's rank to the teacher's, and measure their loss: ``low`` on fitted positions, ``high``
on others. No student ends below ``low``, up to the error of the fit.
"""

from costs import BOTTLENECK_STEPS
from options import dtype_of
from results import write_table
from step1_tokens import evaluation_blocks

from geofloor import BottleneckPredictor


def fit_bottleneck(
    folder,
    *,
    model,
    widths,
    temperature,
    bottleneck_positions,
    eval_sequences,
    forward_batch,
    precision,
    seed,
    device,
):
    """Write ``bottleneck.csv``."""
    bound = BottleneckPredictor(
        model,
        temperature=temperature,
        widths=widths,
        n_positions=bottleneck_positions,
        n_steps=BOTTLENECK_STEPS,
        batch_size=forward_batch,
        model_kwargs={"dtype": dtype_of(precision)},
        device=device,
        random_state=seed,
        verbose=1,
    ).fit(evaluation_blocks(folder, eval_sequences))
    write_table(folder / "bottleneck.csv", bound.curve_)
