"""Weights out: files that other libraries load."""
