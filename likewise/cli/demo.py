"""`likewise demo`: the whole of it on this machine, over text that every Python brings along."""

import asyncio
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.running import OK, Interruption, opened, run, settings_of_verb
from likewise.cli.serve import AsJson, Host, Port, listen, serve_open
from likewise.cli.terminal import in_a_line, note, say, say_json, scores
from likewise.cli.waiting import until_embedded
from likewise.errors import ModelUnavailable, NotFound
from likewise.kind import BATCH
from likewise.progress import progress

if TYPE_CHECKING:
    from likewise.apps.collections.service import SearchResult
    from likewise.kind import NewRecord
    from likewise.library import Likewise

COLLECTION = "python-docs"
QUESTIONS = (
    "run a shell command and get its output",
    "remove duplicates but keep the order",
    "the middle value of some numbers",
)
SHOWN = 5


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the answers instead of serving.")] = False,
    host: Host = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Embed the documentation of this machine's Python, ask it three questions, then serve it."""

    from likewise.cli.weights import fetch  # noqa: PLC0415

    settings = settings_of_verb(host=host, port=port)
    listener = None if once else listen(settings)
    fetch(settings, None, quiet=as_json)

    async def verb(interruption: Interruption) -> int:
        async with opened(settings, worker=True, wait_for_models=False) as likewise:
            await fill(likewise, quiet=as_json)
            await ask(likewise, as_json=as_json)
            if listener is not None:
                suggest(settings.host, listener.getsockname()[1], quiet=as_json)
                await serve_open(likewise, settings, listener, interruption, as_json=as_json)
        return OK

    run(verb)


async def fill(likewise: "Likewise", *, quiet: bool) -> None:
    """Store the docstrings and wait until each has its vector; a second time there is next to nothing to do."""
    from likewise.cli.docstrings import standard_library  # noqa: PLC0415

    records = await asyncio.to_thread(standard_library)
    if not quiet:
        note(f"{len(records)} docstrings of Python's standard library.")
    await store(likewise, records, quiet=quiet)
    if reason := await until_embedded(likewise, COLLECTION, quiet=quiet):
        raise ModelUnavailable(reason)


async def store(likewise: "Likewise", records: Sequence["NewRecord"], *, quiet: bool) -> None:
    """Write the records in batches."""
    tenant = await likewise.tenant()
    try:
        await likewise.collections.get(tenant, COLLECTION)
    except NotFound:
        await likewise.collections.create(tenant, COLLECTION, None, None)
    with progress("Storing", quiet=quiet) as report:
        for start in range(0, len(records), BATCH):
            await likewise.collections.write(tenant, COLLECTION, records[start : start + BATCH])
            report(min(start + BATCH, len(records)), len(records))


async def ask(likewise: "Likewise", *, as_json: bool) -> None:
    """Print the answers to the three questions."""
    from likewise.search.options import SearchOptions, SearchRequest, TextQuestion  # noqa: PLC0415

    tenant = await likewise.tenant()
    for question in QUESTIONS:
        request = SearchRequest(TextQuestion(question), SearchOptions(limit=SHOWN))
        result = await likewise.collections.search(tenant, COLLECTION, request)
        if as_json:
            say_json({"query": question, "hits": result.hits, "took_ms": result.took_ms})
        else:
            show(question, result)


def show(question: str, result: "SearchResult") -> None:
    """One question and its answers, for reading."""
    say(f"\n{question}  ({result.took_ms:.1f} ms; score, cosine similarity, id)")
    for hit in result.hits:
        # The first line of a text is the name and the signature, which the id tells already.
        _, _, docstring = (hit.record.text or "").partition("\n")
        say(f"  {scores(hit)}  {hit.id}: {in_a_line(docstring, 80)}")


def suggest(host: str, port: int, *, quiet: bool) -> None:
    """What to try while the server runs."""
    if quiet:
        return
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/api/v1/collections/{COLLECTION}/search"
    program = _program()
    say("\nTry:")
    for question in QUESTIONS:
        say(f"""  {program} search "{question}" --collection {COLLECTION}""")
        say(f"""  curl -s {address} -H 'Content-Type: application/json' -d '{{"query": "{question}"}}'""")
    say()


def _program() -> str:
    """The command as it was started, where its plain name would start another or none."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m likewise"
    found = shutil.which(started.name)
    if found is not None and started.exists() and started.samefile(found):
        return started.name
    return shlex.quote(sys.argv[0])
