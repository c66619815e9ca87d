"""What everything that makes vectors does: one line in PROVIDERS adds the next."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from likewise.embedding.batching import check
from likewise.embedding.models import MOCK, Endpoint, ModelSpec, local_spec
from likewise.embedding.provider import Provider, Role
from likewise.embedding.providers import mock, openai, openvino
from likewise.settings import load_settings
from likewise.testing import FakeProvider, Upstream

MODEL = Path(__file__).parents[1] / "embedding" / "reference_models" / "mpnet-mean"


@asynccontextmanager
async def a_fake(_: Path) -> AsyncIterator[Provider]:
    yield FakeProvider()


@asynccontextmanager
async def a_small_mpnet(data: Path) -> AsyncIterator[Provider]:
    yield openvino.load(local_spec("own", MODEL), MODEL, load_settings(data_dir=data, precision="f32"))


@asynccontextmanager
async def one_at_an_address(_: Path) -> AsyncIterator[Provider]:
    async with Upstream().running() as upstream:
        upstream.counts = False
        endpoint = Endpoint(upstream.url, "theirs")
        yield openai.load(ModelSpec("ours", "ours", 16, 8_191, architecture="remote", own=True, endpoint=endpoint))


@asynccontextmanager
async def the_same_in_torch(data: Path) -> AsyncIterator[Provider]:
    torch = pytest.importorskip("likewise.embedding.providers.torch", reason="needs the extra torch: make test-torch")
    yield torch.load(local_spec("own", MODEL), MODEL, load_settings(data_dir=data, precision="f32"))


@asynccontextmanager
async def a_made_up_one(_: Path) -> AsyncIterator[Provider]:
    yield mock.load(MOCK)


PROVIDERS: list[tuple[str, Callable[[Path], AbstractAsyncContextManager[Provider]]]] = [
    ("fake", a_fake),
    ("openvino", a_small_mpnet),
    ("openai", one_at_an_address),
    ("torch", the_same_in_torch),
    ("mock", a_made_up_one),
]
TEXTS = [
    "the pump fails when it is cold",
    "x",
    "Die Pumpe fällt bei Kälte aus.",
    "今日は天気がいい",
    "🙂",
    " spaces \t and\nlines ",
    "...",
    "long " * 1_000,
]


@pytest.fixture(params=PROVIDERS, ids=lambda one: one[0])
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Provider]:
    """One provider."""
    async with request.param[1](tmp_path) as provider:
        yield provider
        await provider.close()


@pytest.mark.parametrize("role", ["document", "query"])
async def test_each_text_has_its_vector_and_counts_in_order(made: Provider, role: Role) -> None:
    result = await made.embed(TEXTS, role)
    check(result, len(TEXTS), made.dimension)
    assert result.vectors.dtype == np.float32
    for place, text in enumerate(TEXTS):
        alone = await made.embed([text], role)
        assert float(alone.vectors[0] @ result.vectors[place]) > 0.999
        assert (alone.tokens[0], alone.truncated[0]) == (result.tokens[place], result.truncated[place])


async def test_no_text_has_no_vector(made: Provider) -> None:
    check(await made.embed([], "document"), 0, made.dimension)


async def test_what_is_read_and_what_is_cut_off_add_up(made: Provider) -> None:
    result = await made.embed(TEXTS, "document")
    lengths = await made.lengths(TEXTS)
    assert [int(a + b) for a, b in zip(result.tokens, result.truncated, strict=True)] == lengths
    assert all(result.tokens <= made.max_tokens)
    for text, truncated, read in zip(TEXTS, result.truncated, result.chars_read, strict=True):
        assert bool(read < len(text)) is bool(truncated)
        # What was not read decides nothing.
        again = await made.embed([text[:read]], "document")
        place = TEXTS.index(text)
        assert float(again.vectors[0] @ result.vectors[place]) > 0.999


async def test_the_parts_of_a_text_are_read_whole(made: Provider) -> None:
    text = "\n\n".join(TEXTS)
    most = max(8, made.max_tokens // 2)
    parts = [text[start:end] for start, end in await made.split(text, most, 0)]
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert max(await made.lengths(parts)) <= most
    assert not (await made.embed(parts, "document")).truncated.any()


async def test_space_and_numerics_are_the_same_each_time(made: Provider) -> None:
    assert len(made.space) == 64
    assert made.numerics
    assert made.dimension > 0
    assert made.max_tokens > 2
