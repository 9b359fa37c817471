"""Momentum Contrast training: the step, its schedule, the loop, what it writes."""
