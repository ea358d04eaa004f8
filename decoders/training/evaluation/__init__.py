"""Figures of merit of every kind of head, one a file, with intervals over pictures."""
