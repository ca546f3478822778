"""Who computes a step: torch, the native step, CUDA graphs."""
