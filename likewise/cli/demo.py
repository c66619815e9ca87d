"""`likewise demo`: embed, search and serve on this machine, over text that every Python brings along."""

import ast
import asyncio
import importlib
import inspect
import shlex
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from likewise.apps.collections.service import SearchResult
from likewise.cli.models import require_model_files
from likewise.cli.opening import open_library, until_embedded
from likewise.cli.running import AsJson, Interruption, command_settings, run
from likewise.cli.serve import HostOption, PortOption, listen, serve_open
from likewise.cli.terminal import in_a_line, note, say, say_json, scores
from likewise.errors import ModelUnavailable, NotFound
from likewise.kind import BATCH, NewRecord
from likewise.library import Likewise
from likewise.progress import progress
from likewise.search.options import SearchOptions, SearchRequest, TextQuestion

COLLECTION = "python-docs"
QUESTIONS = (
    "run a shell command and get its output",
    "remove duplicates but keep the order",
    "the middle value of some numbers",
)
SHOWN = 5

# Tests, an editor, and what newer Pythons no longer have tell a reader nothing.
_LEFT_OUT = frozenset(
    {"distutils", "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_MAX_TEXT = 8_000

# The names that people import these by; without an entry `_io` is `io`.
_KNOWN_AS = {"builtins": "", "posix": "os"}

_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the answers instead of serving.")] = False,
    host: HostOption = None,
    port: PortOption = None,
    as_json: AsJson = False,
) -> None:
    settings = command_settings(host=host, port=port)
    listener = None if once else listen(settings)
    require_model_files(settings, None, quiet=as_json)

    async def work(interruption: Interruption) -> None:
        async with open_library(settings, worker=True, wait_for_models=False) as likewise:
            await fill(likewise, quiet=as_json)
            await ask(likewise, as_json=as_json)
            if listener is not None:
                suggest(settings.host, listener.getsockname()[1], quiet=as_json)
                await serve_open(likewise, settings, listener, interruption, as_json=as_json)

    run(work)


async def fill(likewise: Likewise, *, quiet: bool) -> None:
    """Store the docstrings and wait until each has its vector; a second time there is next to nothing to do."""
    records = await asyncio.to_thread(standard_library)
    if not quiet:
        note(f"{len(records)} docstrings of Python's standard library.")
    await store(likewise, records, quiet=quiet)
    if reason := await until_embedded(likewise, COLLECTION, quiet=quiet):
        raise ModelUnavailable(reason)


async def store(likewise: Likewise, records: Sequence[NewRecord], *, quiet: bool) -> None:
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


async def ask(likewise: Likewise, *, as_json: bool) -> None:
    """Print the answers to the three questions."""
    tenant = await likewise.tenant()
    for question in QUESTIONS:
        request = SearchRequest(TextQuestion(question), SearchOptions(limit=SHOWN))
        result = await likewise.collections.search(tenant, COLLECTION, request)
        if as_json:
            say_json({"query": question, "hits": result.hits, "took_ms": result.took_ms})
        else:
            show(question, result)


def show(question: str, result: SearchResult) -> None:
    """Print one question and its answers, for reading."""
    say(f"\n{question}  ({result.took_ms:.1f} ms; score, cosine similarity, id)")
    for hit in result.hits:
        # The first line of a text is the name and the signature, which the id tells already.
        _, _, docstring = (hit.record.text or "").partition("\n")
        say(f"  {scores(hit.score, hit.similarity)}  {hit.id}: {in_a_line(docstring, 80)}")


def suggest(host: str, port: int, *, quiet: bool) -> None:
    """Suggest commands to try while the server runs."""
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
    """Name the program as it was started, where its plain name would start another or none."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m likewise"
    found = shutil.which(started.name)
    if found is not None and started.exists() and started.samefile(found):
        return started.name
    return shlex.quote(sys.argv[0])


def standard_library() -> list[NewRecord]:
    """Make a record of each documented module, class, function and method, by its qualified name (`subprocess.run`)."""
    found: dict[str, NewRecord] = {}
    for record in (*_of_sources(Path(sysconfig.get_path("stdlib"))), *_of_builtins()):
        found.setdefault(record.id, record)
    return list(found.values())


def _of_sources(folder: Path) -> Iterator[NewRecord]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if not _LEFT_OUT.isdisjoint(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            # A distribution may ship files that its own Python cannot read; they are not what is shown here.
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield from _of_node(tree, module, module)


def _of_node(node: ast.Module | _Documented, name: str, module: str) -> Iterator[NewRecord]:
    docstring = ast.get_docstring(node)
    if docstring and docstring.strip():
        yield _record(name, _signature(node), docstring, module, _what(node))
    for child in node.body:
        if isinstance(child, _Documented) and not child.name.startswith("_"):
            yield from _of_node(child, f"{name}.{child.name}", module)


def _signature(node: ast.Module | _Documented) -> str:
    return f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""


def _what(node: ast.Module | _Documented) -> str:
    return {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")


def _of_builtins() -> Iterator[NewRecord]:
    """Read the modules that are written in C, inside Python itself, and the public ones beside it."""
    folder = Path(sysconfig.get_config_var("DESTSHARED") or sysconfig.get_path("stdlib"))
    beside = {path.name.partition(".")[0] for path in folder.glob("[a-z]*.so") if not path.name.startswith("xx")}
    for name in sorted({*sys.builtin_module_names, *beside}):
        try:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                module = importlib.import_module(name)
        except ImportError:
            # Built without the library that it wraps.
            continue
        yield from _of_module(module, name)


def _of_module(module: ModuleType, name: str) -> Iterator[NewRecord]:
    known_as = _KNOWN_AS.get(name, name.lstrip("_"))
    shown = f"{known_as}." if known_as else ""
    for member_name, member in inspect.getmembers(module):
        if member_name.startswith("_") or not (inspect.isclass(member) or inspect.isroutine(member)):
            continue
        yield from _of_object(member, shown + member_name, known_as or name)
        if inspect.isclass(member):
            for method_name, method in vars(member).items():
                if inspect.isroutine(method) and not method_name.startswith("_"):
                    yield from _of_object(method, f"{shown}{member_name}.{method_name}", known_as or name)


def _of_object(member: object, name: str, module: str) -> Iterator[NewRecord]:
    docstring = inspect.getdoc(member)
    if docstring and docstring.strip():
        try:
            signature = str(inspect.signature(member))  # type: ignore[arg-type]  # refused at run time if not callable
        except (TypeError, ValueError):
            signature = ""
        yield _record(name, signature, docstring, module, "class" if inspect.isclass(member) else "function")


def _record(name: str, signature: str, docstring: str, module: str, what: str) -> NewRecord:
    text = f"{name}{signature}\n{inspect.cleandoc(docstring)}"[:_MAX_TEXT]
    return NewRecord(id=name, text=text, payload={"module": module, "what": what}, parent=module)
