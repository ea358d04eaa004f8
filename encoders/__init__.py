"""Frozen vision encoders: a picture goes in, the features that every decoder reads come out.

This package knows nothing of tasks, requests or servers. Decoders import it; it imports neither them nor `serving`.
"""
