"""Export: backbone and heads as one graph for ONNX Runtime, OpenVINO or PyTorch, with a check of what was written."""
