"""Settings of sweeps that take seconds."""

QUICK = {"n_steps": 150, "max_rounds": 2, "n_eval_samples": 4096}
SMALL = {"teacher_widths": [2, 4], "n_seeds": 3, **QUICK}
