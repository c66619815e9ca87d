"""Cross-encoders on the CPU through OpenVINO, from their own folders and safetensors."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from likewise.embedding.files.folder import read_json, read_modules, token_limit
from likewise.embedding.files.weights import check_weights
from likewise.embedding.graphs.architectures import Shape, broken, refuse_others
from likewise.embedding.graphs.encoder import Encoder, scored
from likewise.embedding.graphs.openvino import CompiledGraph, able, choose, compile_graph, openvino
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Vector
from likewise.embedding.providers.local import CALLERS, pack
from likewise.embedding.providers.openvino import BATCH_TOKENS
from likewise.embedding.queue import INTERACTIVE_TOKENS
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.errors import NotSupported
from likewise.search.reranker import RerankerScores
from likewise.settings import Settings

WEIGHTS = "model.safetensors"
# Of the Transformer module that sentence-transformers writes since its version 6.
_SENTENCE_ONLY: Mapping[str, Any] = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
_CLASSIFIER = "ForSequenceClassification"


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
    compiled = compile_graph(graph, precision, "THROUGHPUT", threads=settings.threads, max_tokens=facts.max_tokens)
    return OpenVinoReranker(
        f"openvino-{version}/{precision.name}", facts.max_tokens, tokenizer, compiled, typed=encoder.second is not None
    )


@dataclass(frozen=True)
class Pair:
    """One query and text: their ids with the special ones, where the text's type begins, and what did not fit."""

    ids: Ids
    second: int
    truncated: int


class PairTokenizer:
    """A model's own tokenizer, for pairs within its limit in tokens. Safe to use from several threads."""

    def __init__(self, path: Path, max_tokens: int, *, lowercase: bool = False, vocabulary: int | None = None) -> None:
        """The tokenizer in `path`; ModelUnavailable if it is none, or not that of a model with so many embeddings."""
        self._tokenizer = TextTokenizer(path, max_tokens, lowercase=lowercase, vocabulary=vocabulary)
        try:
            self._frame = self._tokenizer.pair()
        except (ValueError, IndexError):
            raise broken(path, "puts no pair of texts together that this version can read") from None
        self._room = max_tokens - self._frame.size
        if self._room < 2:
            raise broken(path, f"leaves no room for two texts within the model's {max_tokens} tokens")

    def encode(self, query: str, texts: Sequence[str]) -> list[Pair]:
        """The ids of the query with each text, cut to the limit. The query is read once for all of them."""
        asked = self._tokenizer.bare([query])[0]
        return [self._pair(asked, text) for text in self._tokenizer.bare(texts)]

    def _pair(self, query: Sequence[int], text: Sequence[int]) -> Pair:
        of_query, of_text = shares(len(query), len(text), self._room)
        frame = self._frame
        first = [*frame.before, *query[:of_query], *frame.between]
        ids = np.array([*first, *text[:of_text], *frame.after], np.int32)
        return Pair(ids, len(first) if frame.typed else len(ids), len(query) - of_query + len(text) - of_text)


def shares(query: int, text: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each are read where so many have room: the longer one is cut, down to half of it.

    Then both are cut, so that a long query leaves room for texts. That is `longest_first` of Hugging Face's
    `tokenizers`, by which cross-encoders are trained and run.
    """
    if query + text <= room:
        return query, text
    half = room // 2
    if query <= text:
        # An odd one is the longer text's.
        return (query, room - query) if query <= half else (half, room - half)
    return (room - text, text) if text <= half else (room - half, half)


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

    async def score(self, query: str, texts: Sequence[str]) -> RerankerScores:
        """The sigmoid of each pair's logit, and the counts; pairs of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._score, query, texts)

    async def close(self) -> None:
        """Let the threads go."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._model_threads.shutdown(wait=False, cancel_futures=True)

    def _score(self, query: str, texts: Sequence[str]) -> RerankerScores:
        pairs = self._tokenizer.encode(query, texts)
        return RerankerScores(
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


@dataclass(frozen=True)
class CrossEncoderFolder:
    """The folder of a cross-encoder, read; a feature that this version does not have is refused by name.

    `lowercase` is asked for besides what the tokenizer does by itself.
    """

    path: Path
    shape: Shape
    max_tokens: int
    lowercase: bool

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.path / WEIGHTS

    @classmethod
    def read(cls, path: Path) -> "CrossEncoderFolder":
        """Read the folder's JSON files.

        NotSupported names what this version does not do; ModelUnavailable the file that is broken.
        """
        _refuse_modules(path)
        file = path / "config.json"
        config = read_json(file)
        _refuse_other_heads(config, file)
        shape = Shape.read(config, file)
        sentence_file = path / "sentence_bert_config.json"
        sentence = read_json(sentence_file, {})
        refuse_others(sentence, _SENTENCE_ONLY, sentence_file)
        _refuse_prompts(path / "config_sentence_transformers.json")
        limit = min(token_limit(sentence, path), shape.max_tokens)
        return cls(path, shape, limit, bool(sentence.get("do_lower_case", False)))


def _refuse_modules(path: Path) -> None:
    modules = read_modules(path)
    if modules != [("Transformer", "")]:
        names = ", ".join(kind for kind, _ in modules)
        raise NotSupported(f"{path / 'modules.json'} has {names}, and is of no cross-encoder: that is one Transformer.")


def _refuse_other_heads(config: Mapping[str, Any], file: Path) -> None:
    """An encoder without a head, or one that chooses among several labels, gives no score."""
    named = config.get("architectures") or []
    names = [str(one) for one in named] if isinstance(named, list) else []
    if names and not any(name.endswith(_CLASSIFIER) for name in names):
        raise NotSupported(f"{file} is of a {names[0]}, which is no cross-encoder; those end in {_CLASSIFIER}.")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        raise NotSupported(f"{file} has {count} labels; this version runs cross-encoders that give one score.")


def _refuse_prompts(file: Path) -> None:
    if read_json(file, {}).get("default_prompt_name"):
        raise NotSupported(f"{file} has a prompt before each text, which this version does not do.")
