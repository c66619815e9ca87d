"""Heads of an encoder: a vector of its token states, by pooling and the folder's further modules; or a pair's score.

Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084; Nogueira and Cho 2019, https://arxiv.org/abs/1901.04085.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from likewise.embedding.files.folder import Dense, Module, Pooling
from likewise.embedding.graphs.architectures import Shape
from likewise.embedding.graphs.nodes import Node, floats, ints, linear, to_float, unit_length
from likewise.embedding.graphs.openvino import ops
from likewise.embedding.graphs.safetensors import Tensors


def pooled(state: Node, inside: Node, pooling: Pooling) -> Node:
    """Pool vectors (n, d) of token states (n, length, d), over the positions where `inside` (n, length) is true."""
    if pooling == "cls":
        return _first(state)
    kept = ops.unsqueeze(inside, ints([2]))
    if pooling == "max":
        return ops.reduce_max(ops.select(kept, state, floats(-np.inf)), ints([1]))
    weights = to_float(kept)
    return ops.divide(ops.reduce_sum(ops.multiply(state, weights), ints([1])), ops.reduce_sum(weights, ints([1])))


def headed(vectors: Node, modules: Sequence[Module], weights: Mapping[Dense, Tensors]) -> Node:
    """Pass vectors through the modules, to unit length."""
    for module in modules:
        vectors = unit_length(vectors) if module == "normalize" else _dense(vectors, module, weights[module])
    return vectors if modules and modules[-1] == "normalize" else unit_length(vectors)


def scored(state: Node, shape: Shape, tensors: Tensors) -> Node:
    """Score the token states (n, length, hidden) of each pair: float32 (n,), a cross-encoder's logit."""
    head, hidden = shape.architecture.scoring, shape.hidden
    first = _first(state)
    inner = _linear(first, tensors, head.inner, hidden, hidden)
    made = _linear(ops.tanh(inner) if head.activation == "tanh" else ops.relu(inner), tensors, head.outer, 1, hidden)
    return ops.squeeze(made, ints([1]))


def _first(state: Node) -> Node:
    return ops.squeeze(ops.gather(state, ints([0]), ints(1)), ints([1]))


def _linear(state: Node, tensors: Tensors, name: str, outputs: int, inputs: int) -> Node:
    return linear(state, tensors.read(f"{name}.weight", (outputs, inputs)), tensors.read(f"{name}.bias", (outputs,)))


def _dense(vectors: Node, dense: Dense, tensors: Tensors) -> Node:
    weight = tensors.read("linear.weight", (dense.outputs, dense.inputs))
    bias = tensors.read("linear.bias", (dense.outputs,)) if dense.bias else None
    made = linear(vectors, weight, bias)
    return ops.tanh(made) if dense.activation == "tanh" else made
