"""Decide which width to distill: a plan, its cost, and its report.

Nothing is here yet.
"""
