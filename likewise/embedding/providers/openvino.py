"""BERT models on the CPU through OpenVINO, from their own safetensors."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from likewise.embedding.folder import ModelFolder
from likewise.embedding.graphs import bert
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.openvino_runtime import openvino
from likewise.embedding.provider import Matrix, ProviderResult, Role
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.embedding.weights import check_weights
from likewise.errors import SettingsError
from likewise.settings import Settings

# 512 cost 4 % in bf16, larger ones gain nothing. One takes 70 ms on one core; a query does not wait for it.
BATCH_TOKENS = 1_024
BATCHES_AHEAD = 2  # for each stream, in one call: the last ones of a call leave streams idle
CALLERS = 4  # calls at a time: some are tokenized while others are in the model


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "OpenVinoProvider":
    """Check the weights of a folder, compile its graph, and give its provider; blocks for about half a second."""
    facts = ModelFolder.read(folder)
    weights = Tensors(facts.transformer / "model.safetensors")
    digest = check_weights(spec, facts.transformer / "model.safetensors", weights.content, settings)
    shape = bert.BertShape.read(facts.config)
    prefixes: dict[Role, str] = {
        "query": spec.query_prefix or facts.prompts.get("query", ""),
        "document": facts.prompts.get("document", ""),
    }
    max_tokens = min(facts.max_tokens, shape.max_positions)
    tokenizer = facts.transformer / "tokenizer.json"
    graph = bert.build(shape, weights, facts.pooling)
    precision = _precision(settings)
    known = ModelFacts(
        space=_space(digest, tokenizer, repr(shape), facts, prefixes, max_tokens),
        numerics=f"openvino-{_version()}/{precision}",
        dimension=shape.hidden,
        max_tokens=max_tokens,
    )
    return OpenVinoProvider(
        known,
        TextTokenizer(tokenizer, max_tokens, lowercase=facts.lowercase),
        prefixes,
        bulk=_compile(graph, precision, "THROUGHPUT", settings),
        query=_compile(graph, precision, "LATENCY", settings),
    )


class OpenVinoProvider:
    """One local model: a tokenizer, and its graph compiled twice."""

    def __init__(
        self, facts: "ModelFacts", tokenizer: TextTokenizer, prefixes: Mapping[Role, str], bulk: "Graph", query: "Graph"
    ) -> None:
        self.space = facts.space
        self.numerics = facts.numerics
        self.dimension = facts.dimension
        self.max_tokens = facts.max_tokens
        self.batch_tokens = BATCHES_AHEAD * BATCH_TOKENS * bulk.requests
        self._tokenizer = tokenizer
        self._prefixes = prefixes
        self._bulk = bulk
        self._query = query
        self._callers = ThreadPoolExecutor(CALLERS, "likewise-embed")
        self._streams = ThreadPoolExecutor(CALLERS * bulk.requests, "likewise-model")

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts; texts of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._embed, texts, role)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, special ones included, before anything is cut off."""
        count, prefix = self._tokenizer.lengths, self._prefixes["document"]
        return await asyncio.get_running_loop().run_in_executor(self._callers, count, texts, prefix)

    async def close(self) -> None:
        """Let the threads go."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._streams.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        encoded = self._tokenizer.encode(texts, self._prefixes[role])
        lengths = [len(each.ids) for each in encoded]
        return ProviderResult(
            vectors=self._vectors([each.ids for each in encoded], pack(lengths, BATCH_TOKENS)),
            tokens=np.array(lengths, np.int32),
            truncated=np.array([each.truncated for each in encoded], np.int32),
            chars_read=np.array([each.chars_read for each in encoded], np.int32),
        )

    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]]) -> Matrix:
        vectors = np.empty((len(ids), self.dimension), np.float32)
        left = iter(batches)

        def run(graph: Graph) -> None:
            for places in left:
                vectors[places] = graph.run([ids[place] for place in places])

        if len(batches) == 1:
            run(self._query)  # one batch is done soonest by all cores together
        else:
            # each call asks for one request a stream at a time, so that calls get their turns batch by batch
            list(self._streams.map(run, repeat(self._bulk, min(self._bulk.requests, len(batches)))))
        return vectors


class Graph:
    """A compiled graph, with as many requests as it runs best at a time."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.requests):
            self._free.put(compiled.create_infer_request())

    def run(self, batch: Sequence[Ids]) -> Matrix:
        """Unit vectors float32 (n, d) of n texts' token ids; waits for a free request."""
        lengths = np.array([[len(ids)] for ids in batch], np.int32)
        padded = np.zeros((len(batch), int(lengths.max())), np.int32)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        request = self._free.get()
        try:
            request.infer({0: padded, 1: lengths}, share_inputs=True)
            return np.array(request.get_output_tensor(0).data)
        finally:
            self._free.put(request)


@dataclass(frozen=True)
class ModelFacts:
    """What others know a loaded model by."""

    space: str
    numerics: str
    dimension: int
    max_tokens: int


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Places of texts in batches of neighbours by length, whose padded size stays within `limit` tokens."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > limit:
            batches.append(batch)
            batch = []
        batch.append(place)
    return [*batches, batch] if batch else batches


def _precision(settings: Settings) -> str:
    able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if settings.precision == "bf16" and not able:
        raise SettingsError("LIKEWISE_PRECISION=bf16 needs a processor with bf16; set it to auto or f32.")
    if settings.precision == "auto":
        return "bf16" if able else "f32"
    return settings.precision


def _compile(graph: openvino.Model, precision: str, hint: str, settings: Settings) -> "Graph":
    options: dict[str, str | int | bool] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": hint,
        # a thread that is bound to a busy core stands still: pinned, other load on the machine cost 1.7 times as much
        "ENABLE_CPU_PINNING": False,
    }
    threads = settings.threads or _cgroup_cores()
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # no CACHE_DIR: compiling takes 0.1 s
    return Graph(openvino.Core().compile_model(graph, "CPU", options))


def _cgroup_cores() -> int:
    """Cores that a container may use, which OpenVINO does not look at; 0 if there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or `max`
        return 0


def _version() -> str:
    return str(openvino.__version__).partition("-")[0]


def _space(
    weights: str, tokenizer: Path, shape: str, facts: ModelFolder, prefixes: Mapping[Role, str], max_tokens: int
) -> str:
    parts = (
        weights,
        hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        facts.architecture,
        shape,
        facts.pooling,
        "unit length",
        f"lowercase {facts.lowercase}",
        f"query {prefixes['query']}",
        f"document {prefixes['document']}",
        f"tokens {max_tokens}",
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    return digest.hexdigest()
