"""Heads on shared features: each turns one encoder pass into a typed result, and none knows of the others.

Imports `encoders`; never `serving`.
"""
