"""What others made of the same texts and models: the default model's vectors, and very small models of each kind.

benchmarks/reference_vectors.py and reference_models/make.py made them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from likewise.embedding.provider import Matrix

REFERENCE = np.load(Path(__file__).with_name("reference.npz"))
TEXTS: list[str] = json.loads(REFERENCE["texts"].tobytes())
MODELS_FOLDER = Path(__file__).with_name("reference_models")
NAMES = sorted(path.parent.name for path in MODELS_FOLDER.glob("*/expected.npz"))


def cosines(ours: Matrix, theirs: Matrix) -> Matrix:
    """Of each row with the one in its place."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    result: Matrix = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return result


def expected(name: str) -> tuple[list[str], Any, Any]:
    """Texts, and what sentence-transformers made of them with the small model: vectors and numbers of tokens."""
    stored = np.load(MODELS_FOLDER / name / "expected.npz")
    return json.loads(stored["texts"].tobytes()), stored["vectors"], stored["lengths"]


def change(file: Path, **values: Any) -> None:
    """Other values in a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
