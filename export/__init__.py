"""Export of checkpoints to artifacts: ONNX graphs, compared with PyTorch before they are written."""
