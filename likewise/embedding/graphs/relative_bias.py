"""MPNet's attention bias by relative position, in T5's buckets (Raffel et al. 2020, https://arxiv.org/abs/1910.10683)."""

import math

import numpy as np
import numpy.typing as npt

from likewise.embedding.graphs.nodes import Node, floats, ints
from likewise.embedding.graphs.safetensors import Float32
from likewise.embedding.openvino_runtime import ops

BUCKETS = 32  # half for each direction
_MAX_DISTANCE = 128  # all that is farther shares the last bucket


def relative_bias(table: Float32, length: Node, max_tokens: int) -> Node:
    """Biases (1, heads, length, length) of keys (last axis) for queries, from `table` (buckets, heads)."""
    by_distance = floats(table[buckets(max_tokens)].T)
    places = ops.range(ints(0), length, ints(1), "i32")
    distances = ops.subtract(ops.unsqueeze(places, ints(0)), ops.unsqueeze(places, ints(1)))
    return ops.unsqueeze(ops.gather(by_distance, ops.add(distances, ints(max_tokens - 1)), ints(1)), ints(0))


def buckets(max_tokens: int) -> npt.NDArray[np.int64]:
    """The bucket of each relative position from 1 - max_tokens to max_tokens - 1, key minus query."""
    relative = np.arange(1 - max_tokens, max_tokens)
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = np.abs(relative)
    # in float32 as the models were trained, since the borders between buckets depend on rounding
    share = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(math.log(_MAX_DISTANCE / exact))
    far = np.minimum(exact + (share * (half - exact)).astype(np.int64), half - 1)
    result: npt.NDArray[np.int64] = np.where(distance < exact, distance, far) + np.where(relative > 0, half, 0)
    return result
