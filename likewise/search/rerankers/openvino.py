"""Cross-encoders on the CPU through OpenVINO, from their own safetensors."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from likewise.embedding.files.weights import check_weights
from likewise.embedding.graphs.compiled import CompiledGraph, compile_graph
from likewise.embedding.graphs.encoder import Encoder
from likewise.embedding.graphs.heads import scored
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.openvino_runtime import openvino
from likewise.embedding.precision import able, choose
from likewise.embedding.provider import Capacity, Vector
from likewise.embedding.providers.local import CALLERS, pack
from likewise.embedding.providers.openvino import BATCH_TOKENS
from likewise.embedding.queue import INTERACTIVE_TOKENS
from likewise.search.reranker import Scored
from likewise.search.rerankers.folder import CrossEncoderFolder
from likewise.search.rerankers.pairs import Pair, PairTokenizer
from likewise.settings import Settings


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "OpenVinoReranker":
    """Check the weights of a folder, compile its graph, and give its reranker; blocks for about half a second."""
    precision = choose(settings.precision, able())
    facts = CrossEncoderFolder.read(folder)
    tensors = Tensors(facts.weights)
    check_weights(spec, facts.weights, tensors.content, settings)
    encoder = Encoder(facts.shape, tensors, int8=precision.int8, pairs=True)
    graph = openvino.Model([scored(encoder.states(), facts.shape, tensors)], encoder.inputs, "cross-encoder")
    tokenizer = PairTokenizer(
        folder / "tokenizer.json", facts.max_tokens, lowercase=facts.lowercase, vocabulary=encoder.vocabulary
    )
    version = str(openvino.__version__).partition("-")[0]
    # Once, and not twice as for vectors: the fifty texts of a search are some batches, which all cores take together.
    compiled = compile_graph(graph, precision, "THROUGHPUT", settings.threads)
    return OpenVinoReranker(
        f"openvino-{version}/{precision.name}", facts.max_tokens, tokenizer, compiled, typed=encoder.second is not None
    )


class OpenVinoReranker:
    """One local cross-encoder: a tokenizer and a compiled graph. `typed`: the graph tells the text from the query."""

    def __init__(
        self, numerics: str, max_tokens: int, tokenizer: PairTokenizer, graph: CompiledGraph, *, typed: bool
    ) -> None:
        self.numerics = numerics
        self.max_tokens = max_tokens
        self.capacity = Capacity(tokens=INTERACTIVE_TOKENS)
        self.fault: str | None = None
        self._tokenizer = tokenizer
        self._graph = graph
        self._typed = typed
        self._callers = ThreadPoolExecutor(CALLERS, "likewise-rerank")
        self._model_threads = ThreadPoolExecutor(CALLERS * graph.requests, "likewise-cross-encoder")

    async def score(self, query: str, texts: Sequence[str]) -> Scored:
        """The sigmoid of each pair's logit, and the counts; pairs of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._score, query, texts)

    async def close(self) -> None:
        """Let the threads go."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._model_threads.shutdown(wait=False, cancel_futures=True)

    def _score(self, query: str, texts: Sequence[str]) -> Scored:
        pairs = self._tokenizer.encode(query, texts)
        return Scored(
            scores=sigmoid(self.logits(pairs)),
            tokens=np.array([len(pair.ids) for pair in pairs], np.int32),
            truncated=np.array([pair.truncated for pair in pairs], np.int32),
        )

    def logits(self, pairs: Sequence[Pair]) -> Vector:
        """The model's own numbers, float32 (n,)."""
        made = np.empty(len(pairs), np.float32)
        batches = pack([len(pair.ids) for pair in pairs], BATCH_TOKENS)
        left = iter(batches)

        def run(graph: CompiledGraph) -> None:
            for places in left:
                batch = [pairs[place] for place in places]
                second = [pair.second for pair in batch] if self._typed else None
                made[places] = graph.run([pair.ids for pair in batch], second)

        # each call asks for one request a stream at a time, so that calls get their turns batch by batch
        list(self._model_threads.map(run, repeat(self._graph, min(self._graph.requests, len(batches)))))
        return made


def sigmoid(logits: Vector) -> Vector:
    """1 / (1 + exp(-x)) of float32 (n,), as float32; NaN of what is not finite, which is no logit."""
    exact = np.where(np.isfinite(logits), logits, np.nan).astype(np.float64)
    # Beyond 700 exp() is infinite, and nobody can tell the difference.
    made: Vector = (1 / (1 + np.exp(-np.clip(exact, -700, 700)))).astype(np.float32)
    return made
