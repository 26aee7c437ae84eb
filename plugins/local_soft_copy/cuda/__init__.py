"""LocalSoftCopy for NVIDIA GPUs: the kernel's source and how to launch it. Needs nothing of CUDA to be imported."""
