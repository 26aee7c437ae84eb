"""Benchmarks of the op LocalSoftCopy: its CPU forms, its CUDA kernel and the roofline."""
