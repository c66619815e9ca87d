"""OpenVINO: imported without its telemetry, the arithmetic that it runs in here, and graphs as it runs them on the CPU.

`import openvino` sends an event to its maker over the network and writes under the user's home folder, unless the
package `openvino_telemetry` cannot be imported; then it takes a stub of its own. What runs here is nobody else's
business, so that package cannot be imported while OpenVINO loads.
"""

import os
import platform
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Literal

import numpy as np

from likewise.embedding.provider import Matrix
from likewise.embedding.tokenizing import Ids
from likewise.errors import SettingsError
from likewise.machine import cores

Hint = Literal["THROUGHPUT", "LATENCY"]

_TELEMETRY = "openvino_telemetry"
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
QUANTISATION_GROUP = 128  # numbers that share a scale; 32 and 384 are 13 % slower, and 384 is twice as far from f32
# The runtime keeps what it compiled for each shape of batch, by default 5,000 entries a graph: 2.2 GB of one server
# after 59,000 texts of random lengths. To compile anew costs a millisecond: nothing beside the batch of a call, and up
# to a tenth of a short query, so that the graph of queries keeps more.
MAX_SHAPES: dict[Hint, int] = {"THROUGHPUT": 16, "LATENCY": 32}
# A text alone is padded to a multiple of so many tokens: 32 shapes are then all lengths of queries up to 64. With
# multiples of 8 those of 8 to 24 tokens take 1.1 times as long, of 4 to 60 1.06 times (f32, without AVX-512), without
# padding as long as now.
SINGLE_STEP = 2
# oneDNN, in the CPU plugin, keeps what it makes too, 1,024 primitives of any shape by default: a server without AVX-512
# grew from 640 to 780 MiB. With 512 it holds 680 MiB, and answers take as long as with 1,024. With 256 it holds 630,
# but one new text takes 1.04 times as long (docs/benchmarks.md, Memory).
MAX_PRIMITIVES = 512
_CAPACITY_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_OLDER_CAPACITY_VARIABLE = "DNNL_PRIMITIVE_CACHE_CAPACITY"  # oneDNN reads it too
_ENVIRONMENT_LOCK = Lock()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system's own way to say "not there"
    try:
        yield
    finally:
        if before is None:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before


with _without_telemetry():
    import openvino
    from openvino import opset13 as ops

# Others import both from here, so without telemetry; what is defined below can be imported without a mention.
__all__ = ["openvino", "ops"]

PrecisionChoice = Literal["auto", "f32", "bf16", "int8"]


@dataclass(frozen=True)
class Precision:
    """OpenVINO's name of the arithmetic; with `int8` the layers' linear maps have their own."""

    arithmetic: Literal["f32", "bf16"]
    int8: bool = False

    @property
    def name(self) -> str:
        """The name in numerics: vectors of two names do not share a cache."""
        return f"int8-{self.arithmetic}" if self.int8 else self.arithmetic


def choose(choice: PrecisionChoice, able: Collection[str]) -> Precision:
    """Choose the precision that the settings ask for, on a processor that can do it.

    `able` has BF16 or INT8 where there are instructions for it. SettingsError if there are none for the choice.
    """
    if choice in ("bf16", "int8") and choice.upper() not in able:
        needs = {"bf16": "bf16", "int8": "products of int8 (AVX-512 VNNI or AVX-VNNI)"}[choice]
        raise SettingsError(f"LIKEWISE_PRECISION={choice} needs a processor with {needs}; set it to auto or f32.")
    bf16 = "BF16" in able and choice != "f32"
    return Precision("bf16" if bf16 else "f32", int8=choice == "int8")


def able() -> set[str]:
    """Return the arithmetic that this machine's processor has instructions for."""
    named = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    # OpenVINO says INT8 wherever it can do it somehow; without these instructions that is slower than f32
    return named if _has_int8_products() else named - {"INT8"}


def _has_int8_products() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        named = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # no Linux: take OpenVINO's word
        return True
    return bool(_INT8_FLAGS & set(named.split()))


class CompiledGraph:
    """A graph that takes token ids and lengths, and the places where the second texts of pairs begin.

    It has as many requests as it runs best at a time, and takes texts of up to `max_tokens`.
    """

    def __init__(self, compiled: openvino.CompiledModel, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.requests):
            self._free.put(compiled.create_infer_request())

    def run(self, batch: Sequence[Ids], second: Sequence[int] | None = None) -> Matrix:
        """Run the graph on n texts' token ids, which gives float32 (n, d) or (n,), once a request is free."""
        lengths = np.array([[len(ids)] for ids in batch], np.int32)
        padded = np.zeros((len(batch), self._width(lengths)), np.int32)
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

    def _width(self, lengths: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> int:
        longest = int(lengths.max())
        if len(lengths) > 1:
            return longest
        # beyond the model's limit there are no positions
        return max(longest, min(-(-longest // SINGLE_STEP) * SINGLE_STEP, self._max_tokens))


def compile_graph(
    graph: openvino.Model, precision: Precision, hint: Hint, *, threads: int, max_tokens: int
) -> CompiledGraph:
    """Compile a graph for so many threads (0 takes all cores) and texts of up to so many tokens."""
    _bound_primitives()
    options: dict[str, str | int | bool] = {
        "INFERENCE_PRECISION_HINT": precision.arithmetic,
        "PERFORMANCE_HINT": hint,
        # activations are quantised as they come, in the groups of the weights
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": QUANTISATION_GROUP if precision.int8 else 0,
        # a thread that is bound to a busy core stands still: pinned, other load on the machine cost 1.7 times as much
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": MAX_SHAPES[hint],
    }
    used = threads or cores()
    # Postgres works on the same search at the same time: with all cores a query takes 0.9 times as long and costs 1.4
    # times as much, and a search by words and meaning 1.2 times as long.
    options["INFERENCE_NUM_THREADS"] = used if hint == "THROUGHPUT" else max(1, used // 2)
    # no CACHE_DIR: compiling takes 0.1 s
    return CompiledGraph(openvino.Core().compile_model(graph, "CPU", options), max_tokens)


@cache
def _bound_primitives() -> None:
    """Have oneDNN keep MAX_PRIMITIVES, unless the environment says how many.

    The CPU plugin exports no function for it: its oneDNN reads a variable once, with the process's first primitive.
    So one is made here. Where other code ran OpenVINO before, its number stays. The variable is removed again, because
    libraries such as torch have a oneDNN of their own that reads it too.
    """
    with _ENVIRONMENT_LOCK:  # @cache lets several threads in at first
        if _CAPACITY_VARIABLE in os.environ or _OLDER_CAPACITY_VARIABLE in os.environ:
            return
        os.environ[_CAPACITY_VARIABLE] = str(MAX_PRIMITIVES)
        try:
            # oneDNN makes a softmax; a product of matrices OpenVINO may give to another library
            numbers = ops.parameter([1, 2], np.float32)
            openvino.Core().compile_model(openvino.Model([ops.softmax(numbers, 1)], [numbers]), "CPU")
        finally:
            os.environ.pop(_CAPACITY_VARIABLE, None)
