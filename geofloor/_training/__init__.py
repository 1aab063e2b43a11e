"""Devices, seeds, schedules, checkpoints and progress: the parts shared by all training loops.

No estimator lives here, and nothing here knows its model.
"""
