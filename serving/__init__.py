"""The service: HTTP in, verdicts out, onnxruntime on the CPU. Never torch, onnx, mlflow or ``training``."""

__version__ = "0.2.0"
