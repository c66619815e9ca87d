"""Long texts in parts: where they are cut, that none of them is lost, and how documents take turns at it."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semantic_text_splitter import TextSplitter

from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MOCK
from likewise.embedding.providers.mock import MockProvider
from likewise.embedding.splitting import SplitOptions, Splitter, TooManyParts, spans
from likewise.embedding.tokenizing import RUN
from likewise.errors import Overloaded
from likewise.settings import load_settings
from likewise.testing import FakeProvider
from tests.patience import until

LETTERS = st.text(alphabet="ab .\n\té🙂\u0301\x1c\u2003\x00", max_size=300)


@given(text=LETTERS, most=st.integers(1, 40))
def test_every_character_is_in_a_part_or_between_two(text: str, most: int) -> None:
    parts = spans(text, TextSplitter(most))
    assert parts == sorted(parts)
    assert all(start < end and end - start <= most for start, end in parts)
    outside = set(range(len(text))) - {at for start, end in parts for at in range(start, end)}
    assert all(text[at].isspace() for at in outside)
    assert not any(text[start:end].isspace() for start, end in parts)


def test_what_no_space_ends_is_cut_after_so_many_characters() -> None:
    text = "one " + "x" * (2 * RUN + 10) + " two"
    assert spans(text, TextSplitter(10 * RUN)) == [(0, RUN + 4), (RUN + 4, 2 * RUN + 4), (2 * RUN + 4, len(text))]


def test_paragraphs_and_sentences_stay_whole_where_they_fit() -> None:
    text = "The pump is cold. It fails.\n\nThe valve leaks."
    assert [text[start:end] for start, end in spans(text, TextSplitter(30))] == [
        "The pump is cold. It fails.",
        "The valve leaks.",
    ]
    assert [text[start:end] for start, end in spans(text, TextSplitter(20))] == [
        "The pump is cold.",
        "It fails.",
        "The valve leaks.",
    ]


async def test_the_mock_counts_by_characters() -> None:
    parts = await MockProvider(MOCK).split("word " * 100, 16, 4)
    assert all(end - start <= 64 for start, end in parts)
    assert all(start - end <= 16 for (_, end), (start, _) in pairwise(parts))


@pytest.mark.parametrize("most", [16, 64, 10_000])
async def test_the_default_model_reads_every_part_whole(real_models: Path, tmp_path: Path, most: int) -> None:
    # Given
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8") + "_" * 5_000 + "今日は" * 2_000
    embedder = Embedder(load_settings(data_dir=tmp_path, models_dir=real_models, precision="f32"))
    try:
        # When
        parts = await embedder.split(text, options=SplitOptions(most))
        lengths = await embedder.lengths([text[start:end] for start, end in parts])
    finally:
        await embedder.close()
    # Then each is as long as it may be, or the next would not have fitted
    assert max(lengths) <= min(most, 256)
    assert len(parts) < 4 * sum(lengths) / min(most, 256)
    outside = set(range(len(text))) - {at for start, end in parts for at in range(start, end)}
    assert all(text[at].isspace() for at in outside)


# Documents take turns


CUT = SplitOptions(16, 2)
TEXT = "the pump fails when it is cold. " * 20


@pytest.fixture
async def busy() -> AsyncIterator[tuple[FakeProvider, Splitter, asyncio.Task[object]]]:
    """A model that splits a text until its gate opens, where as much may wait as that text and two more."""
    provider = FakeProvider(gate=asyncio.Event())
    splitter = Splitter(waiting_tokens=3 * (len(TEXT) // 4 + 1))
    first: asyncio.Task[object] = asyncio.create_task(splitter.split(provider, TEXT, CUT))
    await until(lambda: len(provider.splits) == 1)
    yield provider, splitter, first
    if provider.gate is not None:
        provider.gate.set()
    await asyncio.gather(first, return_exceptions=True)


async def test_one_is_split_at_a_time_and_more_than_may_wait_is_refused(
    busy: tuple[FakeProvider, Splitter, asyncio.Task[object]],
) -> None:
    # Given a text that is being split, and two that wait
    provider, splitter, first = busy
    waiting = [asyncio.create_task(splitter.split(provider, TEXT, CUT)) for _ in range(2)]
    await asyncio.sleep(0)
    # When another comes
    with pytest.raises(Overloaded) as refused:
        await splitter.split(provider, TEXT, CUT)
    # Then it is told to come back, and the others are done in turn
    assert refused.value.retry_after
    assert len(provider.splits) == 1
    assert provider.gate is not None
    provider.gate.set()
    assert await first == await waiting[0] == await waiting[1]
    assert len(provider.splits) == 3


async def test_who_leaves_the_queue_is_not_split_and_makes_room(
    busy: tuple[FakeProvider, Splitter, asyncio.Task[object]],
) -> None:
    # Given as many as may wait
    provider, splitter, first = busy
    waiting = [asyncio.create_task(splitter.split(provider, TEXT, CUT)) for _ in range(2)]
    await asyncio.sleep(0)
    # When one leaves
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    # Then there is room for another, and nothing of it is split
    late = asyncio.create_task(splitter.split(provider, TEXT[:-1], CUT))
    assert provider.gate is not None
    provider.gate.set()
    await asyncio.gather(first, waiting[1], late)
    assert provider.splits == [len(TEXT), len(TEXT), len(TEXT) - 1]


async def test_the_next_one_waits_for_what_is_being_split_though_its_caller_left(
    busy: tuple[FakeProvider, Splitter, asyncio.Task[object]],
) -> None:
    # Given one whose caller left while it was split
    provider, splitter, first = busy
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    # When the next one comes
    late = asyncio.create_task(splitter.split(provider, TEXT, CUT))
    for _ in range(5):
        await asyncio.sleep(0)
    # Then it waits, for a thread goes on
    assert len(provider.splits) == 1
    assert provider.gate is not None
    provider.gate.set()
    assert await late


async def test_what_comes_to_too_many_parts_is_refused_before_it_is_split(tmp_path: Path) -> None:
    # Given 142 tokens, of which parts of 16 that share 8 take 8 each
    provider = FakeProvider()
    settings = load_settings(data_dir=tmp_path)
    embedder = Embedder(settings, providers={settings.model: lambda spec: provider})
    try:
        # When
        with pytest.raises(TooManyParts, match="more than 17 parts") as refused:
            await embedder.split(TEXT, options=SplitOptions(16, 8, max_parts=17))
        # Then
        assert [(one.pointer, one.code) for one in refused.value.faults] == [("/text", "too_many_parts")]
        assert provider.splits == []
        # And what counting does not tell is seen once it is split
        with pytest.raises(TooManyParts, match="more than 11 parts"):
            await embedder.split(TEXT, options=SplitOptions(14, max_parts=11))
        assert len(provider.splits) == 1
    finally:
        await embedder.close()
