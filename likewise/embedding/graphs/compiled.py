"""Graphs as OpenVINO runs them on the CPU."""

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Literal

import numpy as np

from likewise.embedding.graphs.nodes import QUANTISATION_GROUP
from likewise.embedding.openvino_runtime import openvino
from likewise.embedding.precision import Precision
from likewise.embedding.provider import Matrix
from likewise.embedding.tokenizing import Ids
from likewise.machine import cores

# Of each shape of batch the runtime keeps what it has made ready for it, by default of 5,000 a graph: 2.2 GB of one
# server after 59,000 texts of random lengths. With so many, `benchmarks.memory` finds it no slower.
SHAPES_KEPT = 64


class CompiledGraph:
    """A graph that takes token ids and lengths, and of pairs where the second text begins.

    It has as many requests as it runs best at a time.
    """

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.requests):
            self._free.put(compiled.create_infer_request())

    def run(self, batch: Sequence[Ids], second: Sequence[int] | None = None) -> Matrix:
        """What the graph makes of n texts' token ids, float32 (n, d) or (n,); waits for a free request."""
        lengths = np.array([[len(ids)] for ids in batch], np.int32)
        padded = np.zeros((len(batch), int(lengths.max())), np.int32)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        inputs = {0: padded, 1: lengths}
        if second is not None:
            inputs[2] = np.array(second, np.int32).reshape(-1, 1)
        request = self._free.get()
        try:
            request.infer(inputs, share_inputs=True)
            return np.array(request.get_output_tensor(0).data)
        finally:
            self._free.put(request)


def compile_graph(
    graph: openvino.Model, precision: Precision, hint: Literal["THROUGHPUT", "LATENCY"], threads: int
) -> CompiledGraph:
    """The graph, ready to run on so many threads; 0 takes all cores."""
    options: dict[str, str | int | bool] = {
        "INFERENCE_PRECISION_HINT": precision.arithmetic,
        "PERFORMANCE_HINT": hint,
        # activations are quantised as they come, in the groups of the weights
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": QUANTISATION_GROUP if precision.int8 else 0,
        # a thread that is bound to a busy core stands still: pinned, other load on the machine cost 1.7 times as much
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": SHAPES_KEPT,
    }
    used = threads or cores()
    # Postgres works on the same search at the same time: with all cores a query takes 0.9 times as long and costs 1.4
    # times as much, and a search by words and meaning 1.2 times as long.
    options["INFERENCE_NUM_THREADS"] = used if hint == "THROUGHPUT" else max(1, used // 2)
    # no CACHE_DIR: compiling takes 0.1 s
    return CompiledGraph(openvino.Core().compile_model(graph, "CPU", options))
