"""What everything that scores texts for a query does: one line in RERANKERS adds the next."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from likewise.embedding.models import Endpoint, ModelSpec
from likewise.search.reranker import Reranker, check
from likewise.search.rerankers import openvino, remote
from likewise.settings import load_settings
from likewise.testing import Upstream
from tests.search.rerankers import FOLDER, own


@asynccontextmanager
async def a_small_bert(data: Path) -> AsyncIterator[Reranker]:
    yield openvino.load(own(FOLDER / "bert"), FOLDER / "bert", load_settings(data_dir=data, precision="f32"))


@asynccontextmanager
async def a_small_mpnet(data: Path) -> AsyncIterator[Reranker]:
    yield openvino.load(own(FOLDER / "mpnet"), FOLDER / "mpnet", load_settings(data_dir=data, precision="f32"))


@asynccontextmanager
async def one_at_an_address(_: Path) -> AsyncIterator[Reranker]:
    async with Upstream().running() as upstream:
        endpoint = Endpoint(upstream.url, "theirs")
        yield remote.load(ModelSpec("ours", "ours", 1, 8_191, architecture="remote", own=True, endpoint=endpoint))


@asynccontextmanager
async def one_that_names_texts_otherwise(_: Path) -> AsyncIterator[Reranker]:
    async with Upstream().running() as upstream:
        endpoint = Endpoint(upstream.url, "theirs", texts_named="texts")
        yield remote.load(ModelSpec("ours", "ours", 1, 8_191, architecture="remote", own=True, endpoint=endpoint))


RERANKERS: list[tuple[str, Callable[[Path], AbstractAsyncContextManager[Reranker]]]] = [
    ("openvino", a_small_bert),
    ("openvino-mpnet", a_small_mpnet),
    ("remote", one_at_an_address),
    ("remote-texts", one_that_names_texts_otherwise),
]
QUERY = "which pump fails when it is cold"
TEXTS = [
    "the pump fails when it is cold",
    "x",
    "Die Pumpe fällt bei Kälte aus.",
    "今日は天気がいい",
    "🙂",
    " spaces \t and\nlines ",
    "...",
    "long " * 1_000,
    "the pump fails when it is cold",
]


@pytest.fixture(params=RERANKERS, ids=lambda one: one[0])
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reranker]:
    """One reranker."""
    async with request.param[1](tmp_path) as reranker:
        yield reranker
        await reranker.close()


async def test_each_text_has_its_score_and_counts_in_order(made: Reranker) -> None:
    scored = await made.score(QUERY, TEXTS)
    check(scored, len(TEXTS))
    assert scored.scores.dtype == np.float32
    assert (scored.tokens.dtype, scored.truncated.dtype) == (np.int32, np.int32)
    for place, text in enumerate(TEXTS):
        alone = await made.score(QUERY, [text])
        assert abs(float(alone.scores[0]) - float(scored.scores[place])) < 1e-5


async def test_equal_texts_have_equal_scores(made: Reranker) -> None:
    scores = (await made.score(QUERY, TEXTS)).scores
    assert scores[0] == pytest.approx(scores[-1], abs=1e-6)
    assert len(set(np.round(scores, 4).tolist())) > 1


async def test_no_text_has_no_score(made: Reranker) -> None:
    check(await made.score(QUERY, []), 0)


async def test_another_query_gives_other_scores(made: Reranker) -> None:
    first, other = await made.score(QUERY, TEXTS), await made.score("今日", TEXTS)
    assert np.abs(first.scores - other.scores).max() > 1e-4


async def test_it_says_what_it_is(made: Reranker) -> None:
    assert made.numerics
    assert made.max_tokens > 2
    assert made.fault is None
    assert made.capacity.tokens > 0
