"""Verbs for who runs it: models, db, doctor."""

from functools import partial
from typing import Annotated, Any

import typer

from likewise.cli import purging
from likewise.cli.running import FAILED, OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, say, say_json
from likewise.observe import logs
from likewise.progress import progress
from likewise.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ModelName = Annotated[str | None, typer.Argument(help="Short name, hub id or bare name; absent: the default model.")]

models = typer.Typer(help="The models: which there are, fetching their files, trying them.", no_args_is_help=True)
db = typer.Typer(help="The database: its schema, and what was deleted.", no_args_is_help=True)


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the models and whether their files are here, or they are remote."""
    from likewise.cli.models import rows  # noqa: PLC0415

    found = rows(settings_of_verb())
    if as_json:
        say_json({"models": found})
        return
    for row in found:
        mark = "*" if row["default"] else " "
        what = f"{row['dimension']:>5} dimensions" if row["kind"] == "embedding" else f"{row['kind']:>16}"
        say(f"{mark} {row['name']:<24} {what} {row['max_tokens']:>5} tokens  {row['state']}")
    say("\n* the default. Requests may also name those that LIKEWISE_MODELS_ALLOWED and LIKEWISE_MODELS_FILE list.")


@models.command()
def pull(name: ModelName = None, as_json: AsJson = False) -> None:
    """Fetch a model's files, if they are not here, and check them."""
    from likewise.cli.models import named  # noqa: PLC0415
    from likewise.cli.weights import obtain  # noqa: PLC0415

    settings = settings_of_verb()
    spec = named(settings, name)
    folder = obtain(spec, settings, quiet=as_json) if spec.provider == "local" else None
    if as_json:
        say_json({"model": spec.name, "folder": folder})
    elif folder is None:
        say(f"{spec.name} is a remote model: there is nothing to pull.")
    else:
        say(f"{spec.name} is in {folder}.")


@models.command()
def check(name: ModelName = None, as_json: AsJson = False) -> None:
    """Load a model whose files are here, or ask the one that serves it, and let it work."""
    run(partial(_check, settings=settings_of_verb(), name=name, as_json=as_json))


@db.command()
def upgrade(as_json: AsJson = False) -> None:
    """Bring the database's schema up to date."""
    run(partial(_upgrade, settings=settings_of_verb(), as_json=as_json))


@db.command()
def status(as_json: AsJson = False) -> None:
    """Show which database is used and how far its schema is."""
    run(partial(_status, settings=settings_of_verb(), as_json=as_json))


db.command()(purging.purge)


def doctor(
    show_settings: Annotated[bool, typer.Option("--settings", help="List every setting instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong on this machine, and say how to mend it."""
    # A finding says it in words; settings, which could ask for more, may be what is wrong.
    logs.configure("error")
    if show_settings:
        _list_settings(as_json=as_json)
    else:
        run(partial(_examine, as_json=as_json))


async def _check(_: Interruption, *, settings: Settings, name: str | None, as_json: bool) -> int:
    from likewise.cli.models import tried  # noqa: PLC0415

    facts = await tried(settings, name)
    if as_json:
        say_json(facts)
    else:
        say(_works(facts))
    return OK


def _works(facts: dict[str, Any]) -> str:
    """What a model that works is, in a line."""
    what = f"{facts['dimension']} dimensions" if "dimension" in facts else "a reranker"
    first = f"{facts['model']} works: {what}, {facts['max_tokens']} tokens"
    if "address" in facts:
        return f"{first}, at {facts['address']}, which answered in {facts['answer_seconds']:.1f} s."
    unit = "texts" if "texts_per_second" in facts else "pairs"
    speed = f"{facts[f'{unit}_per_second']:.0f} {unit}/s"
    return f"{first}, {facts['numerics']}, loaded in {facts['load_seconds']:.1f} s, {speed}."


async def _upgrade(_: Interruption, *, settings: Settings, as_json: bool) -> int:
    from likewise.runtime import upgrade_database  # noqa: PLC0415

    with progress("Upgrading the schema (steps)", quiet=as_json) as report:
        applied = await upgrade_database(settings, report)
    if as_json:
        say_json({"applied": applied})
    else:
        say(f"Applied: {', '.join(applied)}." if applied else "The schema is up to date.")
    return OK


async def _status(_: Interruption, *, settings: Settings, as_json: bool) -> int:
    from likewise.cli.opening import state_of  # noqa: PLC0415

    state = await state_of(settings)
    if as_json:
        say_json(state)
    else:
        say(f"Database: {state['database']}, Postgres {state['postgres']}, pgvector {state['pgvector']}.")
        say(f"Schema: {counted(len(state['applied']), 'step')} applied, {len(state['missing'])} missing.")
        if state["missing"]:
            say("Run `likewise db upgrade`.")
    return FAILED if state["missing"] else OK


async def _examine(_: Interruption, *, as_json: bool) -> int:
    from likewise.cli.doctor.doctor import findings  # noqa: PLC0415

    faults = 0
    async for finding in findings():
        faults += finding.mend is not None
        if as_json:
            say_json(finding)
        else:
            say(f"{'ok   ' if finding.mend is None else 'FAULT'}  {finding.part}: {finding.what}")
            if finding.mend:
                say(f"       {finding.mend}")
    if not as_json:
        say("\nNothing is wrong." if not faults else f"\n{counted(faults, 'fault')}.")
    return FAILED if faults else OK


def _list_settings(*, as_json: bool) -> None:
    from likewise.cli.doctor.doctor import setting_rows  # noqa: PLC0415

    found = setting_rows()
    if as_json:
        say_json({"settings": found})
        return
    for row in found:
        say(f"{row['name']}{' (set)' if row['set'] else ''}\n    {row['description']} Default: {row['default']}.")
