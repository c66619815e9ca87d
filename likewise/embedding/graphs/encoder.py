"""Encoders of the BERT family as one OpenVINO graph, and their heads: a vector by pooling, or the score of a pair.

The graph takes token ids and lengths and gives unit vectors, so that nothing but the vectors leaves the compiled model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from likewise.embedding.files.folder import Dense, Module, Pooling
from likewise.embedding.graphs.architectures import Shape
from likewise.embedding.graphs.openvino import QUANTISATION_GROUP, ops
from likewise.embedding.graphs.safetensors import Float32, Tensors

# MPNet's attention bias by relative position, in T5's buckets (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).
BUCKETS = 32  # half for each direction
_MAX_DISTANCE = 128  # all beyond shares the last bucket

Node: TypeAlias = Any  # OpenVINO's own types are not in its stubs


class Encoder:
    """The nodes of one encoder: token ids in, token states out.

    `ids` int32 (n, length) and `lengths` int32 (n, 1) are its inputs. Positions at and after a text's length are
    padding and change nothing; `inside` (n, length) is true before them. With `int8`, the layers' linear maps have
    weights of int8. With `pairs` the place where the second text begins may be a third input,
    `second`, int32 (n, 1).
    """

    def __init__(self, shape: Shape, tensors: Tensors, *, int8: bool = False, pairs: bool = False) -> None:
        self._shape = shape
        self._tensors = tensors
        self._int8 = int8
        prefix = shape.architecture.prefix
        self._prefix = prefix if prefix + "embeddings.word_embeddings.weight" in tensors else ""
        self.ids = ops.parameter([-1, -1], np.int32, name="ids")
        self.lengths = ops.parameter([-1, 1], np.int32, name="lengths")
        self._words = tensors.read(self._prefix + "embeddings.word_embeddings.weight", (None, shape.hidden))
        self._length = ops.squeeze(ops.gather(ops.shape_of(self.ids, "i32"), ints([1]), ints(0)), ints([0]))
        self._places = ops.unsqueeze(ops.range(ints(0), self._length, ints(1), "i32"), ints([0]))
        self.inside = ops.less(self._places, self.lengths)
        typed = pairs and shape.architecture.token_types
        self.second = ops.parameter([-1, 1], np.int32, name="second") if typed else None

    @property
    def inputs(self) -> list[Node]:
        """All inputs, in the order in which a compiled graph takes them."""
        return [self.ids, self.lengths, *([] if self.second is None else [self.second])]

    @property
    def vocabulary(self) -> int:
        """The number of token ids that have embeddings."""
        return len(self._words)

    def states(self) -> Node:
        """Return the last layer's token states, float32 (n, length, hidden)."""
        bias = self._attention_bias()
        state = self._embedded()
        for number in range(self._shape.layers):
            state = self._layer(state, bias, self._shape.architecture.layers.layer.format(number))
        return state

    def _attention_bias(self) -> Node:
        # -1e4 leaves exp() at exactly zero in float32 and stays finite in bf16
        padding = ops.unsqueeze(ops.select(self.inside, floats(0.0), floats(-10_000.0)), ints([1, 2]))
        name = self._shape.architecture.relative_bias
        if name is None:
            return padding
        table = self._read(name, BUCKETS, self._shape.heads)
        return ops.add(padding, relative_bias(table, self._length, self._shape.max_tokens))

    def _embedded(self) -> Node:
        places = self._read("embeddings.position_embeddings.weight", self._shape.positions, self._shape.hidden)
        types = self._types() if self._shape.architecture.token_types else None
        if types is not None and self.second is None:
            # every text is one segment, so the segment's embedding is a constant of the position
            places = places + types[0]
        state = ops.add(
            ops.gather(floats(self._words), self.ids, ints(0)), ops.gather(floats(places), self._positions(), ints(0))
        )
        if types is not None and self.second is not None:
            of_second = ops.convert(ops.greater_equal(self._places, self.second), "i32")
            state = ops.add(state, ops.gather(floats(types), of_second, ints(0)))
        return self._normed(state, "embeddings.LayerNorm")

    def _types(self) -> Float32:
        """Read the segments' embeddings, of which a pair needs two."""
        size = None if self.second is None else 2
        name = self._prefix + "embeddings.token_type_embeddings.weight"
        return self._tensors.read(name, (size, self._shape.hidden))

    def _positions(self) -> Node:
        padding = self._shape.architecture.padding
        if padding is None:
            return self._places
        counted = ops.convert(ops.not_equal(self.ids, ints(padding)), "i32")
        return ops.add(ops.multiply(ops.cum_sum(counted, ints(1)), counted), ints(padding))

    def _layer(self, state: Node, bias: Node, name: str) -> Node:
        names, hidden, inner = self._shape.architecture.layers, self._shape.hidden, self._shape.inner
        mixed = self._linear(self._attention(state, bias, name), name + names.mixed, hidden, hidden)
        state = self._normed(ops.add(mixed, state), name + names.mixed_norm)
        between = ops.gelu(self._linear(state, name + names.inner, inner, hidden), "erf")
        outer = self._linear(between, name + names.outer, hidden, inner)
        return self._normed(ops.add(outer, state), name + names.outer_norm)

    def _attention(self, state: Node, bias: Node, name: str) -> Node:
        heads, size = self._shape.heads, self._shape.hidden // self._shape.heads
        fused = linear(state, self._fused(name, "weight"), self._fused(name, "bias"), int8=self._int8)
        split = ops.transpose(ops.reshape(fused, ints([0, 0, 3, heads, size]), True), ints([2, 0, 3, 1, 4]))
        # Each is (1, n, heads, length, size). Of four axes OpenVINO would make one fused operation that it has to plan
        # anew for each length: 5 % fewer texts a second.
        query, key, value = (ops.gather(split, ints([part]), ints(0)) for part in range(3))
        scores = ops.add(ops.matmul(query, key, False, True), bias)
        mixed = ops.matmul(ops.softmax(scores, 4), value, False, False)
        return ops.reshape(ops.transpose(mixed, ints([1, 3, 0, 2, 4])), ints([0, 0, self._shape.hidden]), True)

    def _fused(self, name: str, kind: str) -> Float32:
        """Join query, key and value. The query is scaled here and not at each run: 4 % more texts a second."""
        names, hidden = self._shape.architecture.layers, self._shape.hidden
        size = (hidden, hidden) if kind == "weight" else (hidden,)
        query, key, value = (
            self._read(f"{name}{part}.{kind}", *size) for part in (names.query, names.key, names.value)
        )
        scale = np.float32(1 / math.sqrt(hidden // self._shape.heads))
        return np.concatenate([query * scale, key, value])

    def _linear(self, state: Node, name: str, outputs: int, inputs: int) -> Node:
        return _stored_linear(state, self._tensors, self._prefix + name, outputs, inputs, int8=self._int8)

    def _normed(self, state: Node, name: str) -> Node:
        """Normalise over the last axis."""
        weight, bias = (floats(self._read(f"{name}.{kind}", self._shape.hidden)) for kind in ("weight", "bias"))
        centred = ops.mvn(state, ints([-1]), True, self._shape.epsilon, "inside_sqrt")
        return ops.add(ops.multiply(centred, weight), bias)

    def _read(self, name: str, *size: int) -> Float32:
        return self._tensors.read(self._prefix + name, size)


def relative_bias(table: Float32, length: Node, max_tokens: int) -> Node:
    """Return biases (1, heads, length, length) of keys (last axis) for queries, from `table` (buckets, heads)."""
    by_distance = floats(table[buckets(max_tokens)].T)
    places = ops.range(ints(0), length, ints(1), "i32")
    distances = ops.subtract(ops.unsqueeze(places, ints(0)), ops.unsqueeze(places, ints(1)))
    return ops.unsqueeze(ops.gather(by_distance, ops.add(distances, ints(max_tokens - 1)), ints(1)), ints(0))


def buckets(max_tokens: int) -> npt.NDArray[np.int64]:
    """Return the bucket of each relative position from 1 - max_tokens to max_tokens - 1, key minus query."""
    relative = np.arange(1 - max_tokens, max_tokens)
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = np.abs(relative)
    # in float32 as the models were trained, since the borders between buckets depend on rounding
    share = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(_MAX_DISTANCE / exact))
    far = np.minimum(exact + (share * (half - exact)).astype(np.int64), half - 1)
    result: npt.NDArray[np.int64] = np.where(distance < exact, distance, far) + np.where(relative > 0, half, 0)
    return result


# Heads: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084; Nogueira and Cho 2019,
# https://arxiv.org/abs/1901.04085.


def pooled(state: Node, inside: Node, pooling: Pooling) -> Node:
    """Pool vectors (n, d) of token states (n, length, d), over the positions where `inside` (n, length) is true."""
    if pooling == "cls":
        return _first(state)
    kept = ops.unsqueeze(inside, ints([2]))
    if pooling == "max":
        return ops.reduce_max(ops.select(kept, state, floats(-np.inf)), ints([1]))
    weights = ops.convert(kept, "f32")
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
    inner = _stored_linear(first, tensors, head.inner, hidden, hidden)
    made = _stored_linear(
        ops.tanh(inner) if head.activation == "tanh" else ops.relu(inner), tensors, head.outer, 1, hidden
    )
    return ops.squeeze(made, ints([1]))


def _first(state: Node) -> Node:
    return ops.squeeze(ops.gather(state, ints([0]), ints(1)), ints([1]))


def _stored_linear(state: Node, tensors: Tensors, name: str, outputs: int, inputs: int, *, int8: bool = False) -> Node:
    weight, bias = tensors.read(f"{name}.weight", (outputs, inputs)), tensors.read(f"{name}.bias", (outputs,))
    return linear(state, weight, bias, int8=int8)


def _dense(vectors: Node, dense: Dense, tensors: Tensors) -> Node:
    weight = tensors.read("linear.weight", (dense.outputs, dense.inputs))
    bias = tensors.read("linear.bias", (dense.outputs,)) if dense.bias else None
    made = linear(vectors, weight, bias)
    return ops.tanh(made) if dense.activation == "tanh" else made


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


def unit_length(vectors: Node) -> Node:
    """Divide vectors (n, d) by their Euclidean norms."""
    return ops.normalize_l2(vectors, ints([1]), 1e-24, "max")


def _quantised(weight: Float32) -> Node:
    """Write a weight as int8 with a float32 scale for each group of a row."""
    rows, width = weight.shape
    grouped = weight.reshape(rows, width // QUANTISATION_GROUP, QUANTISATION_GROUP)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    numbers = ops.constant(np.round(grouped / scale).astype(np.int8))
    return ops.reshape(ops.multiply(ops.convert(numbers, "f32"), floats(scale)), ints([rows, width]), False)
