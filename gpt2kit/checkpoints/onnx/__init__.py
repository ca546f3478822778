"""ONNX, the format of onnxruntime and of what is built on it, out."""

from gpt2kit.errors import MissingDependencyError


def require_packages() -> None:
    """Raise MissingDependencyError, which says what to type, without onnx or onnxruntime."""
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingDependencyError(package, extra="onnx") from None
