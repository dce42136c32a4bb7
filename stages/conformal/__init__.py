"""Conformal prediction sets of f and heads, calibrated on one feature set and judged on others."""
