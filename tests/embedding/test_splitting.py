"""Long texts in parts: where they are cut, and that none of them is lost."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semantic_text_splitter import TextSplitter

from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MOCK
from likewise.embedding.providers.mock import MockProvider
from likewise.embedding.splitting import SplitOptions, spans
from likewise.embedding.tokenizing import RUN
from likewise.settings import load_settings

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
