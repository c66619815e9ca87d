"""The nodes that graphs are made of, and their weights."""

from typing import Any, TypeAlias

import numpy as np

from likewise.embedding.graphs.safetensors import Float32
from likewise.embedding.openvino_runtime import openvino, ops

Node: TypeAlias = Any  # what OpenVINO has as types, its stubs do not

QUANTISATION_GROUP = 128  # numbers that share a scale; 32 and 384 are 13 % slower, and 384 is twice as far from f32


def ints(value: int | list[int]) -> Node:
    """A constant of int32."""
    return ops.constant(np.asarray(value, np.int32))


def floats(value: float | Float32) -> Node:
    """A constant of float32."""
    return ops.constant(np.asarray(value, np.float32))


def linear(state: Node, weight: Float32, bias: Float32 | None, *, int8: bool = False) -> Node:
    """`state` (..., k) times the transpose of `weight` (n, k), plus `bias` (n,)."""
    product = ops.matmul(state, _quantised(weight) if int8 else floats(weight), False, True)
    return product if bias is None else ops.add(product, floats(bias))


def normed(state: Node, weight: Float32, bias: Float32, epsilon: float) -> Node:
    """Layer norm over the last axis."""
    centred = ops.mvn(state, ints([-1]), True, epsilon, "inside_sqrt")
    return ops.add(ops.multiply(centred, floats(weight)), floats(bias))


def unit_length(vectors: Node) -> Node:
    """Vectors (n, d) divided by their Euclidean norms."""
    return ops.normalize_l2(vectors, ints([1]), 1e-24, "max")


def to_float(mask: Node) -> Node:
    """Booleans as 0 and 1."""
    return ops.convert(mask, openvino.Type.f32)


def _quantised(weight: Float32) -> Node:
    """The weight as int8 with a float32 scale for each group of a row; whole rows where they do not split evenly."""
    rows, width = weight.shape
    group = width if width % QUANTISATION_GROUP else QUANTISATION_GROUP
    grouped = weight.reshape(rows, width // group, group)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    numbers = ops.constant(np.round(grouped / scale).astype(np.int8))
    return ops.reshape(ops.multiply(ops.convert(numbers, openvino.Type.f32), floats(scale)), ints([rows, width]), False)
