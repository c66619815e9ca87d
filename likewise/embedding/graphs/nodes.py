"""The nodes of graphs, and their weights."""

from typing import Any, TypeAlias

import numpy as np

from likewise.embedding.graphs.openvino import QUANTISATION_GROUP, openvino, ops
from likewise.embedding.graphs.safetensors import Float32

Node: TypeAlias = Any  # OpenVINO's own types are not in its stubs


def ints(value: int | list[int]) -> Node:
    """Make a constant of int32."""
    return ops.constant(np.asarray(value, np.int32))


def floats(value: float | Float32) -> Node:
    """Make a constant of float32."""
    return ops.constant(np.asarray(value, np.float32))


def linear(state: Node, weight: Float32, bias: Float32 | None, *, int8: bool = False) -> Node:
    """Multiply `state` (..., k) by the transpose of `weight` (n, k), and add `bias` (n,).

    With `int8` a weight whose rows split evenly into groups is int8. Others stay as they are: on a processor with AMX,
    whole graphs of rows of 24 gave wrong vectors in a fifth of all loads.
    """
    quantised = int8 and weight.shape[1] % QUANTISATION_GROUP == 0
    product = ops.matmul(state, _quantised(weight) if quantised else floats(weight), False, True)
    return product if bias is None else ops.add(product, floats(bias))


def normed(state: Node, weight: Float32, bias: Float32, epsilon: float) -> Node:
    """Normalise over the last axis."""
    centred = ops.mvn(state, ints([-1]), True, epsilon, "inside_sqrt")
    return ops.add(ops.multiply(centred, floats(weight)), floats(bias))


def unit_length(vectors: Node) -> Node:
    """Divide vectors (n, d) by their Euclidean norms."""
    return ops.normalize_l2(vectors, ints([1]), 1e-24, "max")


def to_float(mask: Node) -> Node:
    """Convert booleans to 0 and 1."""
    return ops.convert(mask, openvino.Type.f32)


def _quantised(weight: Float32) -> Node:
    """Write a weight as int8 with a float32 scale for each group of a row."""
    rows, width = weight.shape
    grouped = weight.reshape(rows, width // QUANTISATION_GROUP, QUANTISATION_GROUP)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    numbers = ops.constant(np.round(grouped / scale).astype(np.int8))
    return ops.reshape(ops.multiply(ops.convert(numbers, openvino.Type.f32), floats(scale)), ints([rows, width]), False)
