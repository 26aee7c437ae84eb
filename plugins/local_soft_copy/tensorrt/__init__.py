"""LocalSoftCopy (top-k local cross-attention) as a C++ plugin library for TensorRT, and its use from Python."""
