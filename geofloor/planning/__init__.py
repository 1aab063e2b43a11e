"""Decide which width to distill: a plan, its cost, and its report.

Nothing is here yet; ``examples/plan_a_distillation.py`` does this as a script.
"""
