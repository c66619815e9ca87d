"""The default model against sentence-transformers, and what no input may do to it.

benchmarks/reference_vectors.py made the references.
"""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import ProviderResult
from likewise.embedding.providers.local import pack
from likewise.embedding.providers.openvino import OpenVinoProvider
from likewise.settings import Settings, load_settings
from tests.embedding import tiny
from tests.embedding.references import REFERENCE, TEXTS, cosines

LIMIT = 256


@pytest.fixture(params=["f32", "bf16"])
def provider(request: pytest.FixtureRequest) -> OpenVinoProvider:
    found: OpenVinoProvider = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
async def in_f32(f32: OpenVinoProvider) -> ProviderResult:
    return await f32.embed(TEXTS, "document")


@pytest.fixture(scope="session")
async def in_bf16(bf16: OpenVinoProvider) -> ProviderResult:
    return await bf16.embed(TEXTS, "document")


def test_float32_is_what_sentence_transformers_makes(in_f32: ProviderResult) -> None:
    assert len(TEXTS) >= 300
    assert cosines(in_f32.vectors, REFERENCE["vectors"]).min() >= 0.99999


def test_bfloat16_is_close_to_it(in_bf16: ProviderResult) -> None:
    assert cosines(in_bf16.vectors, REFERENCE["vectors"]).min() >= 0.9998


async def test_precision_is_no_part_of_the_space(f32: OpenVinoProvider, bf16: OpenVinoProvider) -> None:
    assert f32.space == bf16.space
    assert (f32.numerics.rpartition("/")[2], bf16.numerics.rpartition("/")[2]) == ("f32", "bf16")
    assert len(f32.space) == 64


async def test_counts_are_the_tokenizers_own(f32: OpenVinoProvider, in_f32: ProviderResult) -> None:
    lengths, got = REFERENCE["lengths"], in_f32
    assert got.tokens.tolist() == np.minimum(lengths, LIMIT).tolist()
    assert got.truncated.tolist() == np.maximum(lengths - LIMIT, 0).tolist()
    assert (await f32.lengths(TEXTS)) == lengths.tolist()
    whole = got.truncated == 0
    assert got.chars_read[whole].tolist() == [
        len(text) for text, all_read in zip(TEXTS, whole, strict=True) if all_read
    ]
    assert (got.chars_read[~whole] < [len(text) for text, read in zip(TEXTS, whole, strict=True) if not read]).all()


@pytest.mark.parametrize("made", ["in_f32", "in_bf16"])
def test_vectors_have_unit_length(request: pytest.FixtureRequest, made: str) -> None:
    got: ProviderResult = request.getfixturevalue(made)
    assert got.vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(got.vectors.astype(np.float64), axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("size", [1, 5, 48])
async def test_company_does_not_change_a_vector(provider: OpenVinoProvider, size: int) -> None:
    rng = np.random.default_rng(size)
    chosen = rng.permutation(len(TEXTS))[:96]
    together = (await provider.embed([TEXTS[place] for place in chosen], "document")).vectors
    for start in range(0, len(chosen), size):
        places = rng.permutation(np.arange(start, min(start + size, len(chosen))))
        apart = (await provider.embed([TEXTS[chosen[place]] for place in places], "query")).vectors
        limit = 0.999999 if provider.numerics.endswith("f32") else 0.9999
        assert cosines(apart, together[places]).min() >= limit


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a" * 200_000, None), ("\u0301" * 200_000, None), ("a" + "\u0301" * 199_999, None), ("_" * 50_000, 50_002),
        ("_" * 200_000, 200_002), ("中" * 200_000, 200_002), ("😀" * 200_000, None), (" " * 199_999 + "a", 3),
        ("a " * 100_000, 100_002), ("\ufdfa" * 200_000, None), ("\x00" * 200_000, 2), ("\ud800" * 200_000, None),
    ],
)  # fmt: skip
async def test_the_worst_texts_have_vectors(f32: OpenVinoProvider, text: str, tokens: int | None) -> None:
    got = await f32.embed([text], "document")
    assert np.isfinite(got.vectors).all()
    assert got.tokens[0] <= LIMIT
    assert tokens is None or got.tokens[0] + got.truncated[0] == tokens


async def test_a_query_is_not_held_up_by_bulk(f32: OpenVinoProvider) -> None:
    bulk = asyncio.create_task(f32.embed(TEXTS, "document"))
    await asyncio.sleep(0.05)
    answered = 0
    while not bulk.done():
        await f32.embed(["how are vectors compared with each other"], "query")
        answered += not bulk.done()
    await bulk
    # Each takes less than a fourth of the bulk, however fast the machine is: behind it the first would take all of it.
    assert answered >= 4


async def test_calls_at_the_same_time_do_not_mix(f32: OpenVinoProvider) -> None:
    expected = (await f32.embed(TEXTS[:60], "document")).vectors
    got = await asyncio.gather(*(f32.embed(TEXTS[place : place + 3], "document") for place in range(0, 60, 3)))
    assert cosines(np.concatenate([each.vectors for each in got]), expected).min() >= 0.999999


async def test_texts_through_the_front_door(real_models: Path, tmp_path: Path) -> None:
    embedder = Embedder(load_settings(data_dir=tmp_path, models_dir=real_models, precision="f32"))
    await embedder.start()
    spoken = [text for text in TEXTS if text.strip()]
    got = await embedder.embed(1, spoken, lane="bulk")
    expected = [vector for text, vector in zip(TEXTS, REFERENCE["vectors"], strict=True) if text.strip()]
    assert cosines(got.vectors, np.array(expected)).min() >= 0.99999
    probe = await embedder.probe()
    assert cosines(probe, np.roll(probe, 1, axis=0)).max() < 0.9
    await embedder.close()


def test_batches_hold_neighbours_and_stay_within_their_size() -> None:
    lengths = [int(length) for length in np.random.default_rng(3).integers(3, 257, 500)]
    batches = pack(lengths, 512)
    assert sorted(place for batch in batches for place in batch) == list(range(500))
    assert all(len(batch) * max(lengths[place] for place in batch) <= 512 for batch in batches)
    padded = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    assert pack([], 512) == []
    assert pack([9_999], 512) == [[0]]


def test_openvino_does_not_call_home(tmp_path: Path, settings: Settings) -> None:
    code = "import sys, likewise.embedding.graphs.openvino; print('openvino_telemetry' in sys.modules)"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"
    assert not (tmp_path / "intel").exists()


MANY_SHAPES = """
import os, sys
from pathlib import Path
import numpy as np
from likewise.embedding.graphs import openvino as graphs
from likewise.embedding.models import local_spec
from likewise.embedding.providers.openvino import load
from likewise.settings import load_settings

graphs.MAX_PRIMITIVES = 8
folder = Path(sys.argv[1])
load(local_spec("own", folder), folder, load_settings(precision="f32", data_dir=sys.argv[2]))
# oneDNN makes a softmax on every processor, whatever the layers of a model are made by
for width in [*range(3, 23)] * 2:
    numbers = graphs.ops.parameter([1, width], np.float32)
    graphs.openvino.Core().compile_model(
        graphs.openvino.Model([graphs.ops.softmax(numbers, 1)], [numbers]), "CPU"
    )
print("left", os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY"))
"""


@pytest.mark.parametrize(
    ("variables", "evicted"),
    [
        ({}, True),
        ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, False),
        ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "1024"}, False),
    ],
)
def test_few_primitives_are_kept_unless_the_environment_says_so(
    tmp_path: Path, variables: dict[str, str], evicted: bool
) -> None:
    # Given a process that tells which primitives it makes, for more shapes than it keeps
    folder = tiny.write_folder(tmp_path / "own", tiny.weights())
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "ONEDNN_VERBOSE": "2", **variables}
    # When each shape comes twice
    command = [sys.executable, "-c", MANY_SHAPES, str(folder), str(tmp_path / "data")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
    # Then what was made for the first is gone by the second, or is not
    lines = done.stdout.splitlines()
    made = Counter(line.rpartition(",")[0] for line in lines if "create:cache_miss" in line and ",softmax," in line)
    assert len(made) >= 20
    assert (max(made.values()) > 1) == evicted
    # and the environment is as it was
    assert f"left {variables.get('ONEDNN_PRIMITIVE_CACHE_CAPACITY')}" in lines
