"""GPT-2 as an ONNX graph: what `gpt2kit.model` and `gpt2kit.variants` compute, node by node.

Inputs and outputs have the names of optimum's graphs with a cache, which other programs know:

    input_ids (B, T) int64          new tokens
    attention_mask (B, S) int64     1 for a token, 0 for padding; cached tokens come first
    position_ids (B, T) int64       positions of the new tokens; padding does not count
    past_key_values.N.key, .value   (B, H, S - T, D), which may be empty
    logits (B, T, V) float32
    present.N.key, .value           (B, H, S, D)

    B batch, T new tokens, S cached + new tokens, C width, H heads, D head size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from gpt2kit import __version__
from gpt2kit.checkpoints.onnx.nodes import NUMPY, Nodes
from gpt2kit.checkpoints.onnx.weights import ELEMENT, NUMBERS, ZERO
from gpt2kit.config import GPT2Config

OPSET = 20  # the first one with Gelu
IR_VERSION = 10
_TINY = 1e-30  # a scale of 8 bits is not 0, even for a row of zeros


def model_without_weights(config: GPT2Config, dtype: str) -> onnx.ModelProto:
    """Return the graph of a configuration; it lacks the initializers of `weights`."""
    graph = _Graph(config, dtype)
    graph.build()
    return helper.make_model(
        helper.make_graph(
            graph.nodes.nodes,
            "gpt2",
            graph.inputs(),
            graph.outputs(),
            initializer=graph.nodes.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gpt2kit",
        producer_version=__version__,
    )


class _Graph:
    """The parts of the model, each a method that adds its nodes and returns its output's name."""

    def __init__(self, config: GPT2Config, dtype: str) -> None:
        self.config = config
        self.is_int8 = dtype == "int8"
        self.element = ELEMENT[NUMBERS[dtype].name]
        self.nodes = Nodes()
        self.shapes = config.shapes()

    # --- the interface ----------------------------------------------------------------------------

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Return the inputs of the graph."""
        tokens, everything = ["batch_size", "sequence_length"], "total_sequence_length"
        integers = {
            "input_ids": tokens,
            "attention_mask": ["batch_size", everything],
            "position_ids": tokens,
        }
        found = [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name, shape in integers.items()
        ]
        return found + self._cache("past_key_values", "past_sequence_length")

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Return the outputs of the graph."""
        shape = ["batch_size", "sequence_length", self.config.n_vocab]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._cache("present", "total_sequence_length")]

    def _cache(self, name: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = ["batch_size", self.config.n_head, length, self.config.head_size]
        return [
            helper.make_tensor_value_info(f"{name}.{layer}.{kind}", self.element, shape)
            for layer in range(self.config.n_layer)
            for kind in ("key", "value")
        ]

    # --- the model --------------------------------------------------------------------------------

    def build(self) -> None:
        """Add the nodes of the whole model."""
        visible = self.visible()  # (B, 1, T, S)
        x = self.embedded("wte.weight", "input_ids")  # (B, T, C)
        if self.config.positions != "none":
            positions = self.nodes.add("Gather", "wpe.weight", "position_ids")
            x = self.nodes.add("Add", x, positions)
        for layer in range(self.config.n_layer):
            x = self.block(x, layer, visible)
        self.head(self.norm(x, "ln_f"))

    def visible(self) -> str:
        """Return which keys each query may look at: (B, 1, T, S) bool."""
        add, one = self.nodes.add, self.nodes.constant([1])
        new = add("Shape", "input_ids", start=1)  # (1,)
        total = add("Shape", "attention_mask", start=1)  # (1,)
        start = add("Squeeze", add("Sub", total, new))
        end, step = add("Squeeze", total), self.nodes.constant(1)
        queries = add("Unsqueeze", add("Range", start, end, step), one)  # (T, 1)
        keys = add("Range", self.nodes.constant(0), end, step)  # (S,)
        is_before = add("LessOrEqual", keys, queries)  # (T, S)
        is_token = add("Cast", "attention_mask", to=TensorProto.BOOL)  # (B, S)
        is_token = add("Unsqueeze", is_token, self.nodes.constant([1, 2]))  # (B, 1, 1, S)
        return add("And", is_token, is_before)

    def embedded(self, name: str, ids: str) -> str:
        """Return rows of a matrix: (B, T, C)."""
        add = self.nodes.add
        if not self.is_int8:
            return add("Gather", name, ids)
        rows = add("Cast", add("Gather", f"{name}_quantized", ids), to=TensorProto.FLOAT)
        rows = add("Sub", rows, self.number(ZERO))
        scale = add("Gather", f"{name}_scale", ids)  # (B, T)
        return add("Mul", rows, add("Unsqueeze", scale, self.nodes.constant([2])))

    def block(self, x: str, layer: int, visible: str) -> str:
        """Return the residual stream after a layer, in the order of the configuration."""
        x = self.connected(x, f"h.{layer}.ln_1", lambda x: self.attention(x, layer, visible))
        if self.config.mlp == "none":
            return x
        return self.connected(x, f"h.{layer}.ln_2", lambda x: self.mlp(x, f"h.{layer}.mlp"))

    def connected(self, x: str, norm: str, part: Callable[[str], str]) -> str:
        """Apply a part of a block, with its norm and residual connection: (B, T, C)."""
        first = self.config.norm_first
        update = part(self.norm(x, norm) if first else x)
        y = self.nodes.add("Add", x, update) if self.config.residual else update
        return y if first else self.norm(y, norm)

    def attention(self, x: str, layer: int, visible: str) -> str:
        """Return the update of attention, and the layer's part of the cache: (B, T, C)."""
        add, name = self.nodes.add, f"h.{layer}.attn"
        x = self.linear(x, f"{name}.c_attn")  # (B, T, 3C)
        parts = tuple(f"{name}.{part}" for part in ("queries", "keys", "values"))
        self.nodes.split("Split", x, outputs=parts, axis=2, num_outputs=3)  # (B, T, C) each
        q, k, v = (self.split_heads(each) for each in parts)  # (B, H, T, D) each
        past, present = f"past_key_values.{layer}", f"present.{layer}"
        k = add("Concat", f"{past}.key", k, output=f"{present}.key", axis=2)  # (B, H, S, D)
        v = add("Concat", f"{past}.value", v, output=f"{present}.value", axis=2)
        upcast = self.config.reorder_and_upcast_attn and self.element == TensorProto.FLOAT16
        element = TensorProto.FLOAT if upcast else self.element
        if upcast:
            q, k, v = (add("Cast", each, to=element) for each in (q, k, v))
        # Scaling the queries, and not the scores, keeps float16 in its range.
        q = add("Mul", q, self.number(self.scale(layer), element))
        scores = add("MatMul", q, add("Transpose", k, perm=[0, 1, 3, 2]))  # (B, H, T, S)
        # A row of padding sees nothing: with the least finite number it is no NaN.
        least = self.number(float(np.finfo(NUMPY[element]).min), element)
        scores = add("Where", visible, scores, least)
        y = add("MatMul", add("Softmax", scores, axis=-1), v)  # (B, H, T, D)
        y = add("Transpose", y, perm=[0, 2, 1, 3])  # (B, T, H, D)
        y = add("Reshape", y, self.nodes.constant([0, 0, self.config.n_embd]))  # (B, T, C)
        y = add("Cast", y, to=self.element) if upcast else y
        return self.linear(y, f"{name}.c_proj")

    def scale(self, layer: int) -> float:
        """Return the factor of the scores."""
        scale = self.config.head_size**-0.5 if self.config.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.config.scale_attn_by_inverse_layer_idx else scale

    def split_heads(self, x: str) -> str:
        """Cut the width into heads: (B, T, C) -> (B, H, T, D)."""
        shape = self.nodes.constant([0, 0, self.config.n_head, self.config.head_size])
        return self.nodes.add("Transpose", self.nodes.add("Reshape", x, shape), perm=[0, 2, 1, 3])

    def mlp(self, x: str, name: str) -> str:
        """Return the update of the MLP: (B, T, C)."""
        x = self.linear(x, f"{name}.c_fc")  # (B, T, inner), or twice as wide
        if self.config.mlp == "swiglu":
            halves = (f"{name}.gate", f"{name}.gated")
            gate, x = self.nodes.split("Split", x, outputs=halves, axis=2, num_outputs=2)
            x = self.nodes.add("Mul", self.activation(gate, "silu"), x)
        else:
            x = self.activation(x, self.config.activation_function)
        return self.linear(x, f"{name}.c_proj")

    def head(self, x: str) -> None:
        """Add the logits: (B, T, V) float32."""
        if self.config.has_own_head:
            x = self.product(x, "lm_head.weight", turned=False)
        elif self.config.head == "linear":
            x = self.product(x, "wte.weight", turned=True)
        if self.config.head_bias:
            x = self.nodes.add("Add", x, "lm_head.bias")
        self.nodes.add("Cast", x, output="logits", to=TensorProto.FLOAT)

    # --- its parts --------------------------------------------------------------------------------

    def number(self, value: float, element: int | None = None) -> str:
        """Return the name of a constant of the graph's own type, or of another."""
        return self.nodes.constant(value, self.element if element is None else element)

    def linear(self, x: str, name: str) -> str:
        """Multiply with a matrix and add its bias, if it has one."""
        x = self.product(x, f"{name}.weight", turned=False)
        bias = f"{name}.bias"
        return self.nodes.add("Add", x, bias) if bias in self.shapes else x

    def product(self, x: str, name: str, *, turned: bool) -> str:
        """Multiply with a matrix that is stored as (in, out), or `turned`, as (out, in)."""
        add = self.nodes.add
        matrix = f"{name}_quantized" if self.is_int8 else name
        matrix = add("Transpose", matrix, perm=[1, 0]) if turned else matrix
        if not self.is_int8:
            return add("MatMul", x, matrix)
        # Each token is rounded with a scale of its own, so that no row depends on others.
        largest = add("ReduceMax", add("Abs", x), self.nodes.constant([-1]), keepdims=1)
        scale = add("Div", add("Max", largest, self.number(_TINY)), self.number(127.0))
        rounded = add("Add", add("Round", add("Div", x, scale)), self.number(ZERO))
        integers = add("Cast", rounded, to=TensorProto.UINT8)  # from 1 to 255
        zero = self.nodes.constant(ZERO, TensorProto.UINT8)
        y = add("MatMulInteger", integers, matrix, zero, zero)
        y = add("Mul", add("Cast", y, to=TensorProto.FLOAT), scale)
        return add("Mul", y, f"{name}_scale")

    def norm(self, x: str, name: str) -> str:
        """Normalize the width: (B, T, C)."""
        if self.config.norm == "none":
            return x
        weight, epsilon = f"{name}.weight", self.config.layer_norm_epsilon
        if self.config.norm == "rmsnorm":
            return self.rms_norm(x, weight, epsilon)
        bias = [f"{name}.bias"] if f"{name}.bias" in self.shapes else []
        return self.nodes.add("LayerNormalization", x, weight, *bias, axis=-1, epsilon=epsilon)

    def rms_norm(self, x: str, weight: str, epsilon: float) -> str:
        """Divide by the root of the mean square, which is computed in float32."""
        add, wide = self.nodes.add, TensorProto.FLOAT
        y = add("Cast", x, to=wide)
        square = add("ReduceMean", add("Mul", y, y), self.nodes.constant([-1]), keepdims=1)
        root = add("Sqrt", add("Add", square, self.number(epsilon, wide)))
        y = add("Cast", add("Div", y, root), to=self.element)
        return add("Mul", y, weight)

    def activation(self, x: str, name: str) -> str:
        """Apply an activation function of the configuration."""
        add = self.nodes.add
        if name in ("gelu", "gelu_new"):
            return add("Gelu", x, approximate="tanh" if name == "gelu_new" else "none")
        if name in ("relu", "tanh"):
            return add(name.capitalize(), x)
        # silu, and quick_gelu, which has a factor in it
        inner = add("Mul", x, self.number(1.702)) if name == "quick_gelu" else x
        return add("Mul", x, add("Sigmoid", inner))
