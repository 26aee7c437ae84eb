"""LocalSoftCopy (top-k local cross-attention) for NVIDIA GPUs: kernel source and launch plan; imports no CUDA."""
