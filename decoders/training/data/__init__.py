"""Labelled pictures on disk, in the layouts that people have, read lazily into plain samples and checked by name."""
