"""Very small cross-encoders, what `transformers` makes of pairs with them, and settings that name a reranker.

reference_rerankers/make.py made them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from likewise.embedding.embedder import Embedder
from likewise.embedding.models import ModelSpec
from likewise.search.reranking import Rerankers
from likewise.settings import Settings
from tests.models_file import models_file

FOLDER = Path(__file__).with_name("reference_rerankers")
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/expected.npz"))
BERT = FOLDER / "bert"


def expected(name: str) -> tuple[list[tuple[str, str]], Any, Any, Any]:
    """Pairs, their logits by transformers, their scores by sentence-transformers, and numbers of tokens read."""
    stored = np.load(FOLDER / name / "expected.npz")
    pairs = [(query, text) for query, text in json.loads(stored["pairs"].tobytes())]
    return pairs, stored["logits"], stored["scores"], stored["lengths"]


def own(folder: Path) -> ModelSpec:
    """The row of a folder of one's own."""
    return ModelSpec(str(folder), str(folder), 1, 0, own=True, folder=folder, runtime="openvino")


def at(folder: Path, url: str, **fields: Any) -> dict[str, Any]:
    """Settings that name a reranker at an address, `theirs`."""
    file = models_file(folder, url, name="theirs", kind="reranker", **fields)
    return {"reranker": "theirs", "models_file": file}


def reranking(settings: Settings, **changes: Any) -> Rerankers:
    """The rerankers of settings, with an embedder's queue and memory that nobody else uses."""
    chosen = settings.model_copy(update=changes)
    embedder = Embedder(chosen)
    return Rerankers(chosen, embedder.ledger, embedder.budget, embedder.memory)
