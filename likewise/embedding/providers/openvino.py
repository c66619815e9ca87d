"""Encoders on the CPU through OpenVINO, from their own safetensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np

from likewise.embedding.files.folder import Dense, ModelFolder
from likewise.embedding.files.weights import check_weights
from likewise.embedding.graphs.architectures import Shape
from likewise.embedding.graphs.encoder import Encoder, headed, pooled
from likewise.embedding.graphs.openvino import CompiledGraph, able, choose, compile_graph, openvino
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Matrix, Role, prefixes
from likewise.embedding.providers.local import CALL_SECONDS, CALLERS, LocalProvider
from likewise.embedding.space import space_of
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.settings import Settings

# 768 to 1,536 are as good as each other, 512 costs 4 % in bf16. One takes 60 ms on one core; no query waits for it.
BATCH_TOKENS = 1_024
# Texts of a call are sorted by tokens, so the longer a call, the less padding: 5 % with 4,096 tokens, 2 % with 32,768,
# which are a second of a small model on two cores. A larger model has shorter calls of as many operations.
CALL_TOKENS = (4_096, 32_768)
_CALL_WEIGHTS = 10_616_832  # linear weights of a model that gets the longest calls: all-MiniLM-L6-v2


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "OpenVinoProvider":
    """Check the weights of a folder, compile its graph, and return its provider; blocks for about half a second."""
    precision = choose(settings.precision, able())
    facts = ModelFolder.read(folder)
    before = prefixes(spec, facts.prompts)
    weights = _Weights.read(spec, facts, settings)
    encoder = Encoder(facts.shape, weights.transformer, int8=precision.int8)
    graph = _graph(encoder, facts, weights.dense)
    tokenizer = TextTokenizer(
        facts.transformer / "tokenizer.json", facts.max_tokens, lowercase=facts.lowercase, vocabulary=encoder.vocabulary
    )
    compiled = partial(compile_graph, graph, precision, threads=settings.threads, max_tokens=facts.max_tokens)
    bulk = compiled("THROUGHPUT")
    return OpenVinoProvider(
        space=space_of(facts, weights.digests, before),
        numerics=f"openvino-{_version()}/{precision.name}",
        dimension=facts.dimension,
        max_tokens=facts.max_tokens,
        capacity=Capacity(_call_tokens(facts.shape), seconds=CALL_SECONDS),
        tokenizer=tokenizer,
        before=before,
        batch_tokens=BATCH_TOKENS,
        model_threads=CALLERS * bulk.requests,
        bulk=bulk,
        query=compiled("LATENCY"),
    )


@dataclass(kw_only=True, eq=False, repr=False)
class OpenVinoProvider(LocalProvider):
    """One local model: a tokenizer, and its graph compiled twice."""

    bulk: CompiledGraph
    query: CompiledGraph

    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        vectors = np.empty((len(ids), self.dimension), np.float32)
        left = iter(batches)

        def run(graph: CompiledGraph) -> None:
            for places in left:
                vectors[places] = graph.run([ids[place] for place in places])

        if len(batches) == 1:
            run(self.query)  # one batch is done soonest by all cores together
        else:
            # each call asks for one request a stream at a time, so that calls get their turns batch by batch
            list(self._model_threads.map(run, repeat(self.bulk, min(self.bulk.requests, len(batches)))))
        return vectors


@dataclass(frozen=True)
class _Weights:
    """A model's weights, checked: those of its Transformer and of its Dense modules."""

    transformer: Tensors
    dense: Mapping[Dense, Tensors]
    digests: tuple[str, ...]

    @classmethod
    def read(cls, spec: ModelSpec, facts: ModelFolder, settings: Settings) -> "_Weights":
        paths = [facts.transformer / "model.safetensors", *(dense.path / "model.safetensors" for dense in facts.dense)]
        modules = ["", *(dense.path.relative_to(facts.path).as_posix() for dense in facts.dense)]
        tensors = [Tensors(path) for path in paths]
        digests = tuple(
            check_weights(spec, path, each.content, settings, module)
            for path, each, module in zip(paths, tensors, modules, strict=True)
        )
        return cls(tensors[0], dict(zip(facts.dense, tensors[1:], strict=True)), digests)


def _graph(encoder: Encoder, facts: ModelFolder, dense: Mapping[Dense, Tensors]) -> openvino.Model:
    vectors = headed(pooled(encoder.states(), encoder.inside, facts.pooling), facts.modules, dense)
    return openvino.Model([vectors], encoder.inputs, "encoder")


def _call_tokens(shape: Shape) -> int:
    shortest, longest = CALL_TOKENS
    return max(shortest, min(longest, longest * _CALL_WEIGHTS // shape.linear_weights))


def _version() -> str:
    return str(openvino.__version__).partition("-")[0]
