"""BERT models on the CPU through OpenVINO, from their own safetensors."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from likewise.embedding.folder import ModelFolder
from likewise.embedding.graphs import bert
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.openvino_runtime import openvino
from likewise.embedding.provider import Matrix, ProviderResult, Role
from likewise.embedding.tokenizing import Encoded, TextTokenizer
from likewise.embedding.weights import check_weights
from likewise.errors import SettingsError
from likewise.settings import Settings

BATCH_TOKENS = 512
QUERY_TOKENS = 128


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "OpenVinoProvider":
    """Check the weights of a folder, compile its graph, and give its provider; blocks for about half a second."""
    facts = ModelFolder.read(folder)
    tensors = Tensors(facts.transformer / "model.safetensors")
    digest = check_weights(spec, facts.transformer / "model.safetensors", tensors.content, settings)
    shape = bert.BertShape.read(facts.config)
    max_tokens = min(facts.max_tokens, shape.max_positions)
    prefixes = {"query": spec.query_prefix or facts.prompts.get("query", ""), "document": facts.prompts.get("document", "")}
    tokenizer_path = facts.transformer / "tokenizer.json"
    graph = bert.build(shape, tensors, facts.pooling)
    precision = _precision(settings)
    return OpenVinoProvider(
        tokenizer=TextTokenizer(tokenizer_path, max_tokens, lowercase=facts.lowercase),
        bulk=_compile(graph, precision, settings.threads, "THROUGHPUT"),
        query=_compile(graph, precision, settings.threads, "LATENCY"),
        prefixes=prefixes,
        space=_space(digest, tokenizer_path, facts, shape, prefixes, max_tokens),
        numerics=f"openvino-{_version()}/{precision}",
        dimension=shape.hidden,
        max_tokens=max_tokens,
    )


class OpenVinoProvider:
    """One local model: a tokenizer and its graph compiled twice, for bulk and for queries."""

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer,
        bulk: Any,
        query: Any,
        prefixes: dict[str, str],
        space: str,
        numerics: str,
        dimension: int,
        max_tokens: int,
    ) -> None:
        self.space = space
        self.numerics = numerics
        self.dimension = dimension
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._prefixes = prefixes
        self._bulk = _Runner(bulk)
        self._query = _Runner(query)
        self._turns = Turns()
        # two bulk calls, so that one is tokenized while the other is in the model, and two urgent ones
        self._threads = ThreadPoolExecutor(4, "likewise-model")

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts; texts of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._embed, texts, role)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, special ones included, before anything is cut off."""
        tokenize = self._tokenizer.lengths
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, tokenize, texts, self._prefixes["document"]
        )

    async def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        encoded = self._tokenizer.encode(texts, self._prefixes[role])
        urgent = role == "query" or sum(len(each.ids) for each in encoded) <= QUERY_TOKENS
        runner = self._query if urgent else self._bulk
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for places in pack([len(each.ids) for each in encoded], BATCH_TOKENS):
            with self._turns.take(urgent):
                vectors[places] = runner.run([encoded[place] for place in places])
        return ProviderResult(
            vectors=vectors,
            tokens=np.array([len(each.ids) for each in encoded], np.int32),
            truncated=np.array([each.truncated for each in encoded], np.int32),
            chars_read=np.array([each.chars_read for each in encoded], np.int32),
        )


class Turns:
    """One inference at a time; who is urgent goes before all who are not."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._urgent = 0

    @contextmanager
    def take(self, urgent: bool) -> Iterator[None]:
        """Wait for the turn, hold it, and pass it on."""
        with self._changed:
            self._urgent += urgent
            self._changed.wait_for(lambda: not self._busy and (urgent or not self._urgent))
            self._urgent -= urgent
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()


class _Runner:
    """One compiled model with its infer request; used in turns."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def run(self, encoded: Sequence[Encoded]) -> Matrix:
        lengths = np.array([[len(each.ids)] for each in encoded], np.int32)
        ids = np.zeros((len(encoded), int(lengths.max())), np.int32)
        for row, each in zip(ids, encoded, strict=True):
            row[: len(each.ids)] = each.ids
        self._request.infer({0: ids, 1: lengths}, share_inputs=True)
        vectors: Matrix = self._request.get_output_tensor(0).data
        return vectors


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


def _compile(graph: Any, precision: str, threads: int, hint: str) -> Any:
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(graph, "CPU", options)


def _version() -> str:
    return str(openvino.__version__).partition("-")[0]


def _space(
    weights: str, tokenizer: Path, facts: ModelFolder, shape: bert.BertShape, prefixes: dict[str, str], max_tokens: int
) -> str:
    parts = (
        weights, hashlib.sha256(tokenizer.read_bytes()).hexdigest(), facts.architecture, repr(shape), facts.pooling,
        "unit", f"lowercase={facts.lowercase}", repr(sorted(prefixes.items())), str(max_tokens),
    )  # fmt: skip
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    return digest.hexdigest()
