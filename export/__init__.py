"""From a checkpoint to an artifact: ONNX graphs, compared with PyTorch before they are written."""
