"""Requests in, rendered results out: planning, batching, the engine, and its gateways.

Imports `decoders` and `encoders`; nothing imports it but `polyhead`, which only re-exports names.
"""
