"""Measurements of a running system: what sharing saves and what serving costs. Raw results are kept in `results/`."""
