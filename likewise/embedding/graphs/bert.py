"""BERT encoders with pooling and normalising as one OpenVINO graph.

The graph takes token ids and lengths and gives unit vectors, so that nothing but the vectors leaves the compiled model.
Architecture: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; pooling: Reimers and Gurevych 2019,
https://arxiv.org/abs/1908.10084.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from likewise.embedding.graphs.safetensors import Float32, Tensors
from likewise.embedding.openvino_runtime import openvino, ops
from likewise.errors import NotSupported

Node: TypeAlias = Any  # what OpenVINO has as types, its stubs do not
Pooling = Literal["mean", "cls", "max"]


@dataclass(frozen=True)
class BertShape:
    """The numbers of one BERT encoder, from its `config.json`."""

    hidden: int
    heads: int
    layers: int
    max_positions: int
    epsilon: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "BertShape":
        """From `config.json`; NotSupported names what this graph does not do."""
        _require(config, "model_type", "bert")
        _require(config, "hidden_act", "gelu")
        _require(config, "position_embedding_type", "absolute")
        return cls(
            hidden=int(config["hidden_size"]),
            heads=int(config["num_attention_heads"]),
            layers=int(config["num_hidden_layers"]),
            max_positions=int(config["max_position_embeddings"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
        )


def _require(config: Mapping[str, Any], key: str, only: str) -> None:
    value = config.get(key, only)
    if value != only:
        raise NotSupported(f"This version does not load models with {key} `{value}`; it loads `{only}`.")


def build(shape: BertShape, tensors: Tensors, pooling: Pooling, normalise: bool = True) -> openvino.Model:
    """The graph: `ids` int32 (n, length) and `lengths` int32 (n, 1) in, float32 (n, hidden) out.

    Positions at and after a text's length are padding and change nothing.
    """
    return _Graph(shape, tensors).model(pooling, normalise)


class _Graph:
    def __init__(self, shape: BertShape, tensors: Tensors) -> None:
        self._shape = shape
        self._tensors = tensors
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""

    def model(self, pooling: Pooling, normalise: bool) -> openvino.Model:
        ids = ops.parameter([-1, -1], np.int32, name="ids")
        lengths = ops.parameter([-1, 1], np.int32, name="lengths")
        positions = self._positions(ids)
        inside = ops.less(positions, lengths)
        bias = self._attention_bias(inside)
        state = self._embed(ids, positions)
        for layer in range(self._shape.layers):
            state = self._layer(state, bias, f"encoder.layer.{layer}.")
        vectors = _pool(state, inside, pooling)
        if normalise:
            vectors = ops.normalize_l2(vectors, _ints([1]), 1e-24, "max")
        return openvino.Model([vectors], [ids, lengths], "bert")

    def _positions(self, ids: Node) -> Node:
        length = ops.gather(ops.shape_of(ids, "i32"), _ints([1]), _ints(0))
        return ops.unsqueeze(ops.range(_ints(0), ops.squeeze(length, _ints([0])), _ints(1), "i32"), _ints([0]))

    def _attention_bias(self, inside: Node) -> Node:
        # -1e4 leaves exp() at exactly zero in float32 and stays finite in bf16
        bias = ops.select(inside, _floats(0.0), _floats(-10_000.0))
        return ops.unsqueeze(bias, _ints([1, 2]))

    def _embed(self, ids: Node, positions: Node) -> Node:
        words = ops.gather(self._weight("embeddings.word_embeddings.weight"), ids, _ints(0))
        # every text is one segment, so the segment's embedding is a constant of the position
        places = self._read("embeddings.position_embeddings.weight")
        places = places + self._read("embeddings.token_type_embeddings.weight")[0]
        state = ops.add(words, ops.gather(ops.constant(places), positions, _ints(0)))
        return self._normed(state, "embeddings.LayerNorm.")

    def _layer(self, state: Node, bias: Node, name: str) -> Node:
        attended = self._dense(self._attention(state, bias, name + "attention.self."), name + "attention.output.dense.")
        state = self._normed(ops.add(attended, state), name + "attention.output.LayerNorm.")
        inner = ops.gelu(self._dense(state, name + "intermediate.dense."), "erf")
        return self._normed(ops.add(self._dense(inner, name + "output.dense."), state), name + "output.LayerNorm.")

    def _attention(self, state: Node, bias: Node, name: str) -> Node:
        heads, size = self._shape.heads, self._shape.hidden // self._shape.heads
        fused = ops.add(ops.matmul(state, self._fused(name, "weight"), False, True), self._fused(name, "bias"))
        split = ops.transpose(ops.reshape(fused, _ints([0, 0, 3, heads, size]), True), _ints([2, 0, 3, 1, 4]))
        query, key, value = (ops.gather(split, _ints(part), _ints(0)) for part in range(3))
        mixed = ops.scaled_dot_product_attention(query, key, value, bias, _floats(1.0))
        return ops.reshape(ops.transpose(mixed, _ints([0, 2, 1, 3])), _ints([0, 0, self._shape.hidden]), True)

    def _fused(self, name: str, kind: str) -> Node:
        """Query, key and value as one. The query is scaled here and not at each run: 4 % more texts a second."""
        query, key, value = (self._read(f"{name}{part}.{kind}") for part in ("query", "key", "value"))
        scale = np.float32(1 / math.sqrt(self._shape.hidden // self._shape.heads))
        return ops.constant(np.concatenate([query * scale, key, value]))

    def _dense(self, state: Node, name: str) -> Node:
        return ops.add(ops.matmul(state, self._weight(name + "weight"), False, True), self._weight(name + "bias"))

    def _normed(self, state: Node, name: str) -> Node:
        centred = ops.mvn(state, _ints([-1]), True, self._shape.epsilon, "inside_sqrt")
        return ops.add(ops.multiply(centred, self._weight(name + "weight")), self._weight(name + "bias"))

    def _weight(self, name: str) -> Node:
        return ops.constant(self._read(name))

    def _read(self, name: str) -> Float32:
        return self._tensors.read(self._prefix + name)


def _pool(state: Node, inside: Node, pooling: Pooling) -> Node:
    if pooling == "cls":
        return ops.squeeze(ops.gather(state, _ints([0]), _ints(1)), _ints([1]))
    kept = ops.unsqueeze(inside, _ints([2]))
    if pooling == "max":
        return ops.reduce_max(ops.select(kept, state, _floats(-np.inf)), _ints([1]))
    weights = ops.convert(kept, "f32")
    return ops.divide(ops.reduce_sum(ops.multiply(state, weights), _ints([1])), ops.reduce_sum(weights, _ints([1])))


def _ints(value: int | list[int]) -> Node:
    return ops.constant(np.asarray(value, np.int32))


def _floats(value: float) -> Node:
    return ops.constant(np.asarray(value, np.float32))
