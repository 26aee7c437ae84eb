"""Where the encoder and the op run: the CPU kernel, ONNX Runtime, TensorRT."""
