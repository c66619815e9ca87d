"""`likewise`: the list of verbs, and how a failure reads."""

import json
import os
import sys
from typing import Annotated

import typer

from likewise.cli import admin, cache, data, demo, jobs, keys, serve, tenants, token, usage
from likewise.cli.running import FAILED, NOT_STARTED
from likewise.errors import LikewiseError, StartError
from likewise.observe.logs import describe
from likewise.observe.version import program_version

app = typer.Typer(
    name="likewise",
    help="Turn text and records into vectors, keep them, and find what is alike.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(demo.demo)
app.command()(serve.serve)
app.command()(serve.worker)
app.command()(data.embed)
app.command()(data.index)
app.command()(data.search)
app.command()(data.similar)
app.add_typer(admin.models, name="models")
app.add_typer(admin.db, name="db")
app.add_typer(keys.keys, name="keys")
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(tenants.tenants, name="tenants")
app.command()(token.token)
app.command()(usage.usage)
app.add_typer(cache.cache, name="cache")
app.command()(admin.doctor)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(program_version())
        raise typer.Exit


@app.callback()
def likewise(
    version_only: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Turn text and records into vectors, keep them, and find what is alike."""


def run() -> None:
    """The program. Exit codes: 0 ok, 1 failure, 2 usage, 3 could not start, 4 partly done, 130 Ctrl-C."""
    _keep_standard_files_open()
    code = main()
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        # Whoever read our output has left; at its end Python would complain about that.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; a failure is one line on stderr."""
    try:
        app(arguments, prog_name="likewise")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except LikewiseError as error:
        _tell(f"likewise: {error.detail}", error)
        for fault in error.faults if len(error.faults) > 1 else ():
            _tell(f"  {fault.pointer}: {fault.message}")
        return NOT_STARTED if isinstance(error, StartError) else FAILED
    except OSError as error:
        _tell(f"likewise: {(error.strerror or 'a file or connection failed').lower()}.", error)
        return FAILED
    except Exception as error:  # noqa: BLE001 - whatever it was, the terminal gets a line and not a traceback
        described = describe(error)
        place = f" at {described['at']}" if "at" in described else ""
        _tell(f"likewise: failed with {described['error']}{place}. LIKEWISE_LOG_LEVEL=debug shows more.", error)
        return FAILED
    return 0


def _keep_standard_files_open() -> None:
    """Started with one of them closed (`>&-`), its number would go to the next file or socket that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _tell(line: str, error: Exception | None = None) -> None:
    print(line, file=sys.stderr)
    if error is not None and os.environ.get("LIKEWISE_LOG_LEVEL", "").lower() == "debug":
        # Not the traceback itself: messages of errors may hold somebody's texts.
        print(json.dumps(describe(error, trace=True), indent=2), file=sys.stderr)
