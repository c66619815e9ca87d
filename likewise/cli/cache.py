"""Verbs for the cache of vectors: warm."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli import standard_input
from likewise.cli.names import refuse_no_tenant
from likewise.cli.running import FAILED, OK, PARTLY, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, note, say, say_json
from likewise.errors import SettingsError
from likewise.progress import progress
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.cli.warming import Warmed, Work

MAX_FAULTS = 20
JSON_LINES = frozenset({".jsonl", ".ndjson"})

cache = typer.Typer(help="The cache of vectors.", no_args_is_help=True)


@cache.callback()
def verbs() -> None:
    """The cache of vectors."""


@cache.command()
def warm(
    file: Annotated[str, typer.Argument(help="A file with a text a line, or JSONL; - for standard input.")],
    tenant: Annotated[str, typer.Option(help="Whose requests are to find them.")] = "default",
    model: Annotated[str | None, typer.Option(help="Model, if not the default.")] = None,
    queries: Annotated[bool, typer.Option("--queries", help="They are queries, not documents.")] = False,
    jsonl: Annotated[
        bool | None, typer.Option("--jsonl/--lines", help="What a line is; absent: by the file's name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Embed texts ahead of the requests for them, and put their vectors in Redis.

    What the cache knows already costs nothing. In JSONL the field `text` of each line is taken.
    """
    standard_input.require(file == "-")
    refuse_no_tenant(tenant, "--tenant")
    settings = settings_of_verb()
    if settings.redis_url is None:
        raise SettingsError("What this verb puts in memory would end with it. Set LIKEWISE_REDIS_URL to warm a Redis.")
    from likewise.cli.warming import Work  # noqa: PLC0415
    from likewise.cli.weights import fetch  # noqa: PLC0415

    is_jsonl = Path(file).suffix.lower() in JSON_LINES if jsonl is None else jsonl
    work = Work(file, tenant, model, "query" if queries else "document", is_jsonl)
    fetch(settings, model, quiet=as_json)
    run(partial(_warm, settings=settings, work=work, as_json=as_json))


async def _warm(_: Interruption, *, settings: Settings, work: "Work", as_json: bool) -> int:
    from likewise.cli.warming import warm as warm_up  # noqa: PLC0415

    with progress("Embedding", quiet=as_json) as report:
        done = await warm_up(settings, work, report)
    _tell(done, as_json=as_json)
    if done.refused or done.not_written or done.stopped:
        return PARTLY if done.known + done.embedded - done.not_written > 0 else FAILED
    return OK


def _tell(done: "Warmed", *, as_json: bool) -> None:
    for fault in done.faults[:MAX_FAULTS]:
        note(f"Left out: {fault}")
    if done.refused > MAX_FAULTS:
        note(f"Left out: {done.refused - MAX_FAULTS} more.")
    if done.stopped:
        note(f"Stopped before the end. {done.stopped}")
    if as_json:
        say_json(done.as_json())
        return
    say(
        f"{done.known} known, {done.embedded} embedded, {done.refused} refused, from {counted(done.lines, 'line')}; "
        f"{counted(done.not_written, 'vector')} did not reach Redis."
    )
