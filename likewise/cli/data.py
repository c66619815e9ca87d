"""Verbs that put data in and find it again: embed, index, search, similar."""

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli import standard_input
from likewise.cli.running import FAILED, OK, PARTLY, Interruption, opened, run, settings_of_verb
from likewise.cli.terminal import counted, in_a_line, note, say, say_json, scores
from likewise.cli.waiting import tell_waiting, until_embedded
from likewise.errors import Invalid, ModelUnavailable, StartError
from likewise.progress import progress
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.apps.collections.service import SearchResult
    from likewise.cli.index import Indexed
    from likewise.embedding.embedder import Embedded

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
CollectionName = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Most hits to show.")]
Rerank = Annotated[bool, typer.Option("--rerank", help="Have the model of LIKEWISE_RERANKER put the hits in order.")]
Model = Annotated[str | None, typer.Option(help="Model, if not the default.")]

EMBED_BATCH = 512
MAX_FAULTS = 20


def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts, or - for a text a line from standard input.")],
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts into vectors."""
    standard_input.require(texts == ["-"])
    from likewise.cli.weights import fetch  # noqa: PLC0415

    settings = settings_of_verb()
    fetch(settings, model, quiet=as_json)
    run(partial(_embed, settings=settings, texts=texts, model=model, as_json=as_json))


def index(
    path: Annotated[str, typer.Argument(help="A folder, a text, Markdown or JSONL file, or - for JSON lines.")],
    collection: CollectionName,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Put files into a collection; what is there unchanged costs nothing.

    A file of a folder has the id FOLDER/PATH, and #1, #2 behind that if it is cut in parts; the parent of its records
    is the folder's absolute path. Records whose file is gone from the folder are removed. A file is left out, and
    named, if the collection has a record of its id that came from elsewhere. Links that lead out of the folder are not
    followed.
    """
    standard_input.require(path == "-")
    run(partial(_index, settings=settings_of_verb(), path=path, collection=collection, model=model, as_json=as_json))


def search(
    query: str, collection: CollectionName, limit: Limit = 10, rerank: Rerank = False, as_json: AsJson = False
) -> None:
    """Find the records nearest to a query in meaning and words."""
    run(partial(_search, collection=collection, as_json=as_json, query=query, like=None, limit=limit, rerank=rerank))


def similar(
    id: Annotated[str, typer.Argument(help="Id of a record.")],
    collection: CollectionName,
    limit: Limit = 10,
    rerank: Rerank = False,
    as_json: AsJson = False,
) -> None:
    """Find the records most like one of the collection."""
    run(partial(_search, collection=collection, as_json=as_json, query=None, like=id, limit=limit, rerank=rerank))


async def _embed(_: Interruption, *, settings: Settings, texts: list[str], model: str | None, as_json: bool) -> int:
    from likewise.embedding.embedder import Embedder  # noqa: PLC0415
    from likewise.embedding.loading import ONE_USE_SECONDS  # noqa: PLC0415

    embedder = Embedder(settings)
    done = 0
    try:
        with progress("Embedding", quiet=as_json or (texts != ["-"] and len(texts) <= EMBED_BATCH)) as report:
            async for batch in _lines() if texts == ["-"] else _parts(texts):
                try:
                    await embedder.opened(model, patience=ONE_USE_SECONDS)
                    made = await embedder.embed(0, batch, model=model)
                except Invalid as error:
                    raise _named(error, done, "line" if texts == ["-"] else "text") from None
                _tell_vectors(made, as_json=as_json)
                if not as_json:
                    _tell_cut(made, done, "line" if texts == ["-"] else "text")
                done += len(batch)
                report(done, None if texts == ["-"] else len(texts))
    except ModelUnavailable as error:
        raise StartError(error.detail) from None
    finally:
        await embedder.close()
    return OK


async def _index(
    _: Interruption, *, settings: Settings, path: str, collection: str, model: str | None, as_json: bool
) -> int:
    from likewise.cli.index import index as index_files  # noqa: PLC0415

    async with opened(settings, worker=True) as likewise:
        with progress("Reading", quiet=as_json) as report:
            done = await index_files(likewise, path, collection, model, report)
        reason = await until_embedded(likewise, collection, quiet=as_json) if done.stored else None
    _tell_indexed(done, reason, as_json=as_json)
    if done.faults and not done.stored:
        return FAILED
    return PARTLY if done.faults or reason else OK


async def _search(
    _: Interruption,
    *,
    collection: str,
    as_json: bool,
    query: str | None,
    like: str | None,
    limit: int,
    rerank: bool,
) -> int:
    from likewise.search.options import RecordQuestion, SearchOptions, SearchRequest, TextQuestion  # noqa: PLC0415

    async with opened(settings_of_verb(), worker=False) as likewise:
        question = RecordQuestion(like) if like is not None else TextQuestion(query or "")
        request = SearchRequest(question, SearchOptions(limit=limit, rerank=rerank))
        result = await likewise.collections.search(await likewise.tenant(), collection, request)
    _tell_hits(result, as_json=as_json)
    return OK


async def _lines() -> AsyncIterator[list[str]]:
    """The lines of standard input in batches."""
    done = 0
    async for batch in standard_input.batches(EMBED_BATCH):
        yield [_decoded(line, number) for number, line in enumerate(batch, done + 1)]
        done += len(batch)


async def _parts(texts: list[str]) -> AsyncIterator[list[str]]:
    for start in range(0, len(texts), EMBED_BATCH):
        yield texts[start : start + EMBED_BATCH]


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Invalid(f"Line {number} of standard input is not UTF-8; convert it first, as iconv does.") from None


def _named(error: Invalid, start: int, what: str) -> Invalid:
    """The error with its texts named as who gave them counts: from 1."""
    faults = error.moved("/texts", lambda place: f"{what} {start + place + 1}").faults
    if not faults:
        return error
    first = f"{faults[0].pointer}: {faults[0].message}"
    return Invalid(first if len(faults) == 1 else f"{len(faults)} {what}s cannot be embedded.", faults=faults)


def _tell_vectors(made: "Embedded", *, as_json: bool) -> None:
    """A line for each text: JSON, or its numbers."""
    for place, vector in enumerate(made.vectors.tolist()):
        if as_json:
            tokens, truncated = int(made.tokens[place]), int(made.truncated[place])
            say_json({"embedding": vector, "model": made.model, "tokens": tokens, "truncated_tokens": truncated})
        else:
            say(" ".join(f"{number:.6f}" for number in vector))


def _tell_cut(made: "Embedded", start: int, what: str) -> None:
    for place, cut in enumerate(made.truncated.tolist(), start + 1):
        if cut:
            note(f"{what} {place}: {counted(cut, 'token was', 'tokens were')} cut off.")


def _tell_indexed(done: "Indexed", reason: str | None, *, as_json: bool) -> None:
    for fault in done.faults[:MAX_FAULTS]:
        note(f"Left out: {fault.rstrip('.')}.")
    if len(done.faults) > MAX_FAULTS:
        note(f"Left out: {len(done.faults) - MAX_FAULTS} more.")
    if as_json:
        say_json(done.as_json() | {"waiting_for_model": reason})
        return
    say(
        f"{done.collection}: {done.created} new, {done.changed} changed, {done.unchanged} unchanged, "
        f"{done.removed} removed, from {counted(done.files, 'file')}."
    )
    if reason:
        tell_waiting(reason)


def _tell_hits(result: "SearchResult", *, as_json: bool) -> None:
    if as_json:
        say_json(result)
        return
    if "model" in result.degraded:
        note("The model is away: these are found by their words only.")
    if not result.hits:
        note("Nothing was found.")
    else:
        note("score, cosine similarity, id")
    for hit in result.hits:
        say(f"{scores(hit)}  {in_a_line(hit.id)}")
        say(f"              {in_a_line(hit.record.text or '')}")
