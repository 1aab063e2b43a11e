"""What every training loop shares: devices, seeds, schedules, checkpoints and progress.

No estimator lives here, and nothing here knows what is being trained.
"""
