"""The documentation that every Python brings: docstrings of its standard library, as records."""

import ast
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from likewise.kind import NewRecord

# Tests, an editor, and what newer Pythons no longer have tell a reader nothing.
_LEFT_OUT = frozenset(
    {"distutils", "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_MAX_TEXT = 8_000

# The names that people import these by; without an entry `_io` is `io`.
_KNOWN_AS = {"builtins": "", "posix": "os"}

_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def standard_library() -> list[NewRecord]:
    """A record for each documented module, class, function and method, by its qualified name (`subprocess.run`)."""
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
    """What is written in C, so has no source to read: modules inside Python itself, and public ones beside it."""
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
