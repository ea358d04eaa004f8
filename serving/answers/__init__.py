"""Typed results to and from what goes over the wire."""
