"""`likewise`: the list of commands, and how a failure reads."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from likewise.apps.checking import fault_of
from likewise.apps.registry import APPS, load
from likewise.cli.running import FAILED, NOT_STARTED
from likewise.errors import LikewiseError, StartError
from likewise.observe.logs import describe
from likewise.observe.version import program_version


class CommandRow(NamedTuple):
    """A command or a group of commands: its name, its function or `typer.Typer` as `module:name`, and its help.

    Without help that of the function or `typer.Typer` is taken, which is imported for it.
    """

    name: str
    target: str
    help: str | None = None


def _own(name: str, target: str, help: str) -> CommandRow:
    return CommandRow(name, f"{__package__}.{target}", help)


COMMANDS = (
    _own(
        "demo",
        "demo:demo",
        "Embed the documentation of this machine's Python, ask it three questions, then serve it.",
    ),
    _own("serve", "serve:serve", "Serve the HTTP API until stopped."),
    _own("worker", "serve:worker", "Embed what waits until stopped, beside servers on the same database."),
    _own("embed", "embed:embed", "Turn texts into vectors."),
    _own(
        "index",
        "index:index",
        """Put files into a collection; what is there unchanged costs nothing.

        A file of a folder has the id FOLDER/PATH, and #1, #2 behind that if it is cut in parts; the parent of its
        records is the folder's absolute path. Records whose file is gone from the folder are removed. A file is left
        out, and named, if the collection has a record of its id that came from elsewhere. Links that lead out of the
        folder are not followed.
        """,
    ),
    _own("search", "search:search", "Find the records nearest to a query in meaning and words."),
    _own("similar", "search:similar", "Find the records most like one of the collection."),
    _own("token", "token:token", "Make a JWT for a server with LIKEWISE_AUTH=dev and the same secret."),
    _own(
        "usage",
        "usage:usage",
        """Show what was embedded and what it cost, in whole hours.

        What servers and workers embedded in the last two seconds may not be in it yet.
        """,
    ),
    _own("doctor", "doctor.doctor:doctor", "Look for what is wrong on this machine, and say how to fix it."),
    _own("models", "models:models", "The models: which there are, fetching their files, trying them."),
    _own("db", "db:db", "The database: its schema, and what was deleted."),
    _own(
        "keys",
        "keys:keys",
        "API keys: making, listing and revoking them. And the key that texts wait encrypted with.",
    ),
    _own("jobs", "jobs:jobs", "Jobs: what became of work that outlived its request."),
    _own("tenants", "tenants:tenants", "Tenants: declaring and listing them."),
    _own("cache", "cache:cache", "The cache of vectors."),
)


def all_commands() -> tuple[CommandRow, ...]:
    """List the commands, then those that apps bring."""
    return (*COMMANDS, *(CommandRow(name, target) for row in APPS for name, target in row.commands.items()))


class LazyGroup(TyperGroup):
    """The commands of a list, each imported when it is called: `--help` need not wait for the model runtime."""

    def __init__(self, **attributes: Any) -> None:
        """Know the commands by name and help alone."""
        listed = {row.name: TyperCommand(row.name, help=row.help) for row in all_commands()}
        super().__init__(**attributes | {"commands": listed})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command; None if there is none of this name."""
        return next((_imported(row) for row in all_commands() if row.name == cmd_name), None)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an option or argument that is none of those that it takes is refused in our words."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_our_words(error)
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands, of which only those without help in their row are imported."""
        without = {row.name: _imported(row) for row in all_commands() if row.help is None}
        TyperGroup(commands={**self.commands, **without}).format_commands(ctx, formatter)


def _in_our_words(error: typer.BadParameter) -> str:
    """Return the reason of a refusal; newer versions of typer have pydantic's own words for most."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return error.message
    details = cause.errors(include_url=False)[0]
    # What our own and typer's functions raise is a sentence of itself.
    raised = details.get("ctx", {}).get("error")
    return str(raised) if isinstance(raised, ValueError) else fault_of(details, ()).message


def _imported(row: CommandRow) -> Any:
    with _ended_by_interrupts():
        found = load(row.target)
    holder = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=row.name, help=row.help or found.info.help, no_args_is_help=True)
    else:
        holder.command(row.name, help=row.help)(found)
    return get_group(holder).commands[row.name]


@contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    # An extension module that is being imported may turn the exception of a Ctrl-C into an ImportError of its own.
    # Nothing is open yet, so the process may as well end.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)


app = typer.Typer(
    name="likewise",
    cls=LazyGroup,
    help="Turn text and records into vectors, keep them, and find what is alike.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    """Run the program. Exit codes: 0 ok, 1 failure, 2 usage, 3 could not start, 4 partly done, 130 Ctrl-C."""
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
        _print_error(f"likewise: {error.detail}", error)
        for fault in error.faults if len(error.faults) > 1 else ():
            _print_error(f"  {fault.pointer}: {fault.message}")
        return NOT_STARTED if isinstance(error, StartError) else FAILED
    except OSError as error:
        _print_error(f"likewise: {(error.strerror or 'a file or connection failed').lower()}.", error)
        return FAILED
    except Exception as error:  # noqa: BLE001 - whatever it was, the terminal gets a line and not a traceback
        described = describe(error)
        place = f" at {described['at']}" if "at" in described else ""
        _print_error(f"likewise: failed with {described['error']}{place}. LIKEWISE_LOG_LEVEL=debug shows more.", error)
        return FAILED
    return 0


def _keep_standard_files_open() -> None:
    # Started with one of them closed (`>&-`), its number would go to the next file or socket that is opened.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _print_error(line: str, error: Exception | None = None) -> None:
    print(line, file=sys.stderr)
    if error is not None and os.environ.get("LIKEWISE_LOG_LEVEL", "").lower() == "debug":
        # Not the traceback itself: messages of errors may hold somebody's texts.
        print(json.dumps(describe(error, trace=True), indent=2), file=sys.stderr)
