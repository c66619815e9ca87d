"""`likewise embed`: turn texts into vectors."""

from collections.abc import AsyncIterator
from typing import Annotated

import typer

from likewise.cli.models import require_model_files
from likewise.cli.running import AsJson, ModelOption, command_settings, run
from likewise.cli.terminal import counted, note, require_stdin, say, say_json, stdin_batches
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.errors import Invalid, ModelUnavailable, StartError
from likewise.progress import progress
from likewise.settings import Settings

BATCH = 512


def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts, or - for a text a line from standard input.")],
    model: ModelOption = None,
    as_json: AsJson = False,
) -> None:
    require_stdin(texts == ["-"])
    settings = command_settings()
    require_model_files(settings, model, quiet=as_json)
    run(lambda _: _embed(settings, texts, model, as_json=as_json))


async def _embed(settings: Settings, texts: list[str], model: str | None, *, as_json: bool) -> None:
    unit, total = ("line", None) if texts == ["-"] else ("text", len(texts))
    quiet = as_json or (total is not None and total <= BATCH)
    embedder = Embedder(settings)
    done = 0
    try:
        with progress("Embedding", quiet=quiet) as report:
            async for batch in _lines() if total is None else _parts(texts):
                await embedder.opened(model, patience=ONE_USE_SECONDS)
                try:
                    made = await embedder.embed(0, batch, model=model)
                except Invalid as error:
                    raise _named(error, done, unit) from None
                _print_vectors(made, as_json=as_json)
                if not as_json:
                    _note_cut(made, done, unit)
                done += len(batch)
                report(done, total)
    except ModelUnavailable as error:
        raise StartError(error.detail) from None
    finally:
        await embedder.close()


async def _lines() -> AsyncIterator[list[str]]:
    done = 0
    async for batch in stdin_batches(BATCH):
        yield [_decoded(line, number) for number, line in enumerate(batch, done + 1)]
        done += len(batch)


async def _parts(texts: list[str]) -> AsyncIterator[list[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Invalid(f"Line {number} of standard input is not UTF-8; convert it first, as iconv does.") from None


def _named(error: Invalid, start: int, unit: str) -> Invalid:
    """Name the texts of an error as who gave them counts: from 1."""
    faults = error.moved("/texts", lambda index: f"{unit} {start + index + 1}").faults
    if not faults:
        return error
    first = f"{faults[0].pointer}: {faults[0].message}"
    return Invalid(first if len(faults) == 1 else f"{len(faults)} {unit}s cannot be embedded.", faults=faults)


def _print_vectors(made: Embedded, *, as_json: bool) -> None:
    """Print a line for each text: JSON, or its numbers."""
    for place, vector in enumerate(made.vectors.tolist()):
        if as_json:
            tokens, truncated = int(made.tokens[place]), int(made.truncated[place])
            say_json({"embedding": vector, "model": made.model, "tokens": tokens, "truncated_tokens": truncated})
        else:
            say(" ".join(f"{number:.6f}" for number in vector))


def _note_cut(made: Embedded, start: int, unit: str) -> None:
    for place, cut in enumerate(made.truncated.tolist(), start + 1):
        if cut:
            note(f"{unit} {place}: {counted(cut, 'token was', 'tokens were')} cut off.")
