"""The Open Inference Protocol v2, so that clients of NVIDIA Triton and KServe work unchanged."""
