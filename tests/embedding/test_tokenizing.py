"""Counts of tokens and characters, at the edges."""

from pathlib import Path

import pytest

from likewise.embedding.tokenizing import RUN, TextTokenizer


@pytest.fixture(scope="session")
def tokenizer(real_folder: Path) -> TextTokenizer:
    return TextTokenizer(real_folder / "tokenizer.json", 256)


@pytest.mark.parametrize(
    "text",
    [
        "word " * 1_000,
        "Ünïcödé wörds 日本語 🙂 " * 100,
        "e\u0301te\u0301 " * 300,
        "x" * 90 + " y" * 400,
        "\n\n a\tb" * 400,
    ],
)
def test_what_was_read_ends_where_it_says(tokenizer: TextTokenizer, text: str) -> None:
    whole = tokenizer.encode([text])[0]
    assert whole.truncated > 0
    read = tokenizer.encode([text[: whole.chars_read]])[0]
    assert read.ids.tolist() == whole.ids.tolist()
    assert read.truncated == 0


def test_a_text_at_the_limit_is_read_whole(tokenizer: TextTokenizer) -> None:
    at, over = tokenizer.encode(["word " * 254, "word " * 255])
    assert (len(at.ids), at.truncated, at.chars_read) == (256, 0, 254 * 5)
    assert (len(over.ids), over.truncated, over.chars_read) == (256, 1, 254 * 5 - 1)
    assert tokenizer.lengths(["word " * 254, "word " * 255, "word"]) == [256, 257, 3]


@pytest.mark.parametrize("length", [RUN - 1, RUN, RUN + 1, 3 * RUN, 50 * RUN + 117])
def test_characters_are_counted_through_runs_that_are_split(tokenizer: TextTokenizer, length: int) -> None:
    # every comma is a token, so the 254th ends the reading
    text = "," * length
    got = tokenizer.encode([text])[0]
    assert got.chars_read == min(254, length)
    late = "a" * length + " " + ", " * 300
    got = tokenizer.encode([late])[0]
    pieces = -(-length // RUN)  # each one unknown word
    assert got.chars_read == length + 1 + 2 * (254 - pieces) - 1


def test_lone_surrogates_and_controls_do_no_harm(tokenizer: TextTokenizer) -> None:
    got = tokenizer.encode(["a\ud800b", "a\ufffdb", "nul\x00 in it", "\udfff" * 300])
    assert got[0].ids.tolist() == got[1].ids.tolist()
    assert all(each.truncated == 0 for each in got)
