"""
Step 5: tokens → students
=========================

Distill all students together, with one forward pass of the teacher per batch (Table 3, and the curves of Figures 6 and
16). Then distill some of them again for more steps (Section 6.1). Under ``accelerate launch``, all processes train, and
the first one writes.
"""

import shutil

import pandas as pd
from options import PAPER, dtype_of, students_of
from results import write_table
from step1_tokens import evaluation_blocks, training_blocks

from geofloor.language_models import zero_width_kl
from geofloor.students import distill_widths


def student_path(folder, width, seed):
    return folder / f"student-width-{width}-seed-{seed}.safetensors"


def distill(folder, checkpoints, students, *, model, eval_sequences, precision, **settings):
    return distill_widths(
        model,
        training_blocks(folder, eval_sequences),
        students,
        eval_tokens=evaluation_blocks(folder, eval_sequences),
        checkpoint_dir=checkpoints,
        like=PAPER,
        precision="bf16" if precision == "bf16" else None,
        eval_sequences=eval_sequences,
        verbose=1,
        **settings,
    )


def distill_students(
    folder,
    *,
    model,
    widths,
    repeat_widths,
    temperature,
    n_steps,
    batch_size,
    optimizer,
    learning_rate,
    weight_decay,
    warmup_steps,
    gradient_accumulation,
    eval_sequences,
    eval_every,
    checkpoint_every,
    precision,
    seed,
    device,
    is_main,
):
    """Write ``student-*.safetensors``, ``curves.csv`` and ``students.csv``."""
    checkpoints = folder / "distillation"
    students = distill(
        folder,
        checkpoints,
        students_of(widths, repeat_widths, seed),
        model=model,
        eval_sequences=eval_sequences,
        precision=precision,
        temperature=temperature,
        n_steps=n_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        gradient_accumulation=gradient_accumulation,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        device=device,
    )
    if not is_main:
        return
    held_out = evaluation_blocks(folder, eval_sequences)
    zero_width = zero_width_kl(
        model,
        held_out,
        temperature=temperature,
        batch_size=batch_size,
        model_kwargs={"dtype": dtype_of(precision)},
        device=device,
    )
    for student in students:
        student.save(student_path(folder, student.width, student.random_state))
    write_table(folder / "curves.csv", curves_of(students))
    length = held_out.shape[1]
    results = [
        {
            "width": student.width,
            "seed": student.random_state,
            "n_parameters": student.n_parameters_,
            "kl": student.floor_,
            "standard_error": student.floor_error_,
            "raw_kl": student.floor_ * length * temperature**2,  # the paper's unit
            "remaining_fall": student.remaining_fall_,
            "converged": student.converged_,
            "zero_width_kl": zero_width,
        }
        for student in students
    ]
    write_table(folder / "students.csv", pd.DataFrame(results))
    shutil.rmtree(checkpoints, ignore_errors=True)


def curves_of(students):
    """Tabulate the learning curves of all students."""
    columns = ["step", "train_kl", "eval_kl", "learning_rate"]
    curves = [
        pd.DataFrame(student.history_)[columns].assign(width=student.width, seed=student.random_state)
        for student in students
    ]
    return pd.concat(curves)[["width", "seed", *columns]]


# %%
# More steps
# ----------
# The paper extends the training of one student and does not say how. Here a new student has the longer training's own
# warm-up and decay: a run that resumed after the decay would hardly learn.


def distill_longer(
    folder,
    *,
    model,
    longer_widths,
    longer_steps,
    temperature,
    batch_size,
    optimizer,
    learning_rate,
    weight_decay,
    warmup_steps,
    gradient_accumulation,
    eval_sequences,
    eval_every,
    checkpoint_every,
    precision,
    seed,
    device,
    is_main,
):
    """Write ``longer.csv``, with the change from the loss in ``students.csv``."""
    if not longer_widths:
        return
    checkpoints = folder / "distillation-longer"
    students = distill(
        folder,
        checkpoints,
        students_of(longer_widths, [], seed),
        model=model,
        eval_sequences=eval_sequences,
        precision=precision,
        temperature=temperature,
        n_steps=longer_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        gradient_accumulation=gradient_accumulation,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        device=device,
    )
    if not is_main:
        return
    before = pd.read_csv(folder / "students.csv").set_index(["width", "seed"])["kl"]
    results = [
        {
            "width": student.width,
            "seed": seed,
            "n_steps": longer_steps,
            "kl": student.floor_,
            "standard_error": student.floor_error_,
            "change": student.floor_ / before[student.width, seed] - 1.0,
        }
        for student in students
    ]
    write_table(folder / "longer.csv", pd.DataFrame(results))
    shutil.rmtree(checkpoints, ignore_errors=True)
