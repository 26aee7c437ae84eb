"""Benchmarks of the op: CPU forms, CUDA kernel, roofline."""
