"""The nodes of an ONNX graph, collected one after another; a node's output is known by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMPY: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
}


class Nodes:
    """Nodes in the order in which they are computed, and the small constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """The constants, as initializers."""
        return list(self._constants.values())

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return its name: `output`, or one of its own."""
        outputs = (output or f"{kind}_{len(self.nodes)}",)
        return self.split(kind, *inputs, outputs=outputs, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, outputs: tuple[str, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs, and return their names."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, value: float | list[int], kind: int = TensorProto.INT64) -> str:
        """Return the name of a constant, a number or a list of numbers, of a type of ONNX's."""
        key = (str(value), kind)
        if key not in self._constants:
            array = np.array(value, NUMPY[kind])
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return str(self._constants[key].name)
