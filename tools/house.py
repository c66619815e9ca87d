"""Measure the house: how many rooms it has, how long they are, and in which words it speaks.

`python -m tools.house [FOLDER ...]` prints one column for each checkout, so that two states can be compared.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles

QUESTION_WORDS = frozenset("what who whose whom which where when whether why how that".split())
# Where a record comes in, from the services of the apps to the rows: files of this tree, and of those before it.
WRITE_PATH = (
    "ingest/writer.py",
    "ingest/unit_of_work.py",
    "ingest/grouping.py",
    "ingest/group_commit.py",
    "ingest/batch.py",
    "apps/collections/arrays.py",
    "apps/collections/batches.py",
    "apps/collections/lines.py",
    "apps/collections/service.py",
    "apps/collections/writing.py",
    "apps/segments/service.py",
    "apps/segments/writing.py",
    "apps/idempotency.py",
    "db/records.py",
)
# What only these apps have in their routes and fields.
OWN_WORDS = {"segments": ("segment_id", "point_id", "/vectors")}
LONG_FUNCTION = 30

Function = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Room:
    """One file of the package."""

    path: Path
    name: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.path.read_text())

    @cached_property
    def code(self) -> frozenset[int]:
        """The numbers of the lines that hold code: no blank line, comment or docstring is one."""
        skipped = {
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        }
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.path.read_text()).readline):
            if token.type not in skipped:
                lines.update(range(token.start[0], token.end[0] + 1))
        for docstring in self.docstrings:
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        return frozenset(lines)

    @cached_property
    def docstrings(self) -> list[ast.Constant]:
        """The docstrings of the module, its classes and its functions."""
        firsts = (node.body[0] for node in ast.walk(self.tree) if isinstance(node, DOCUMENTED) and node.body)
        values = (first.value for first in firsts if isinstance(first, ast.Expr))
        return [value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]

    @property
    def text_of_code(self) -> str:
        """The lines of code, comments at their ends included."""
        return "\n".join(line for at, line in enumerate(self.path.read_text().splitlines(), 1) if at in self.code)

    @property
    def functions(self) -> Iterator[Function]:
        """Every function and method."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    @property
    def import_lines(self) -> int:
        """How many lines of code its import statements take."""
        lines: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return len(lines & self.code)

    @property
    def public_types(self) -> Iterator[str]:
        """Public classes, and public aliases of types, which have a name in CamelCase."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign) and _is_type(node.value):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                continue
            yield from (
                name for name in names if not name.startswith("_") and name != name.upper() and name[0].isupper()
            )

    def size_of(self, function: Function) -> int:
        """Lines of code of a function, its decorators left out."""
        return len(self.code & set(range(function.lineno, (function.end_lineno or function.lineno) + 1)))


def _is_type(value: ast.expr) -> bool:
    """Tell aliases of types (`X | Y`, `Callable[...]`, `Annotated[...]`) from other values."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr)
    return isinstance(value, ast.Subscript)


@dataclass(frozen=True)
class House:
    """A checkout of the package."""

    folder: Path

    @cached_property
    def rooms(self) -> list[Room]:
        """The files of the package, by path."""
        package = self.folder / "likewise"
        return [Room(path, str(path.relative_to(package))) for path in sorted(package.rglob("*.py"))]

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """The modules that import each module."""
        modules = {_module(room.name) for room in self.rooms}
        importers: dict[str, set[str]] = defaultdict(set)
        for room in self.rooms:
            me = _module(room.name)
            for target in _imports(room.tree, modules):
                if target != me:
                    importers[target].add(me)
        return importers

    def figures(self) -> dict[str, str]:
        """The figures by name."""
        code = [len(room.code) for room in self.rooms]
        functions = [room.size_of(function) for room in self.rooms for function in room.functions]
        imports = sum(room.import_lines for room in self.rooms)
        lonely = sum(len(names) == 1 for names in self.importers.values())
        return {
            "files": f"{len(self.rooms)}",
            "lines of code": f"{sum(code):,}",
            "file, median": f"{median(code):.0f}",
            "file, longest": f"{max(code)}",
            "functions, p90": f"{quantiles(functions, n=10)[-1]:.0f}",
            "functions, longest": f"{max(functions)}",
            f"functions over {LONG_FUNCTION} lines": f"{sum(size > LONG_FUNCTION for size in functions)}",
            "imports, share of code": f"{imports / sum(code):.1%}",
            "modules with one importer": f"{lonely}",
            "callables among the write path's parameters": f"{len(self.callables)}",
            "public type names that stand twice": f"{len(self.repeated_types)}",
            "docstrings that begin with a question word": f"{len(self.questions)}",
            "constants named MOST_ or LEAST_": f"{len(self.mosts)}",
            "files outside its folder that segments needs": f"{len(self.needed_by('segments'))}",
        }

    @property
    def callables(self) -> list[str]:
        """Parameters and fields of the write path that are functions, as `file:line name`."""
        found = []
        for room in self.rooms:
            if room.name in WRITE_PATH:
                aliases = _callable_aliases(room.tree)
                typed = (node for node in ast.walk(room.tree) if isinstance(node, ast.arg | ast.AnnAssign))
                for node in typed:
                    if node.annotation is not None and aliases & _names(node.annotation):
                        name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
                        found.append(f"{room.name}:{node.lineno} {name}")
        return found

    @property
    def repeated_types(self) -> dict[str, list[str]]:
        """Public type names that more than one module defines."""
        homes: dict[str, list[str]] = defaultdict(list)
        for room in self.rooms:
            for name in set(room.public_types):
                homes[name].append(room.name)
        return {name: places for name, places in sorted(homes.items()) if len(places) > 1}

    @property
    def questions(self) -> list[str]:
        """Docstrings that begin with a question word, as `file:line word`."""
        found = []
        for room in self.rooms:
            for docstring in room.docstrings:
                words = str(docstring.value).split()
                if words and words[0].strip(",:;`'").lower() in QUESTION_WORDS:
                    found.append(f"{room.name}:{docstring.lineno} {words[0]}")
        return found

    @property
    def mosts(self) -> list[str]:
        """Constants of limits that are named otherwise than `MAX_` and `MIN_`."""
        found: set[str] = set()
        for room in self.rooms:
            names = (node for node in ast.walk(room.tree) if isinstance(node, ast.Name))
            stored = (node.id for node in names if isinstance(node.ctx, ast.Store))
            found.update(f"{room.name} {name}" for name in stored if re.match(r"_?(MOST|LEAST)_", name))
        return sorted(found)

    def needed_by(self, app: str) -> list[str]:
        """Files outside an app's folder that know of the app: by its name, or by a route or a field of its own."""
        words = re.compile("|".join((app, *OWN_WORDS.get(app, ()))))
        outside = (room for room in self.rooms if not room.name.startswith(f"apps/{app}/"))
        return [room.name for room in outside if words.search(room.text_of_code)]


def _callable_aliases(tree: ast.Module) -> set[str]:
    """`Callable`, and the names that a module gives to types made with it."""
    aliases = {"Callable"}
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_type(node.value) and "Callable" in _names(node.value):
            aliases.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return aliases


def _names(node: ast.expr) -> set[str]:
    """The names in an expression; those of a type that is written as a text are names too."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return names.union(*(re.findall(r"\w+", text) for text in texts if " " not in text.strip()))


def _module(name: str) -> str:
    return ".".join(("likewise", *Path(name).with_suffix("").parts)).removesuffix(".__init__")


def _imports(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in modules else node.module
                if target in modules:
                    yield target


def main(arguments: list[str]) -> None:
    """Print the figures of checkouts side by side; with `--list` the places behind those that are to become few."""
    houses = [House(Path(folder)) for folder in arguments if folder != "--list"] or [House(Path())]
    columns = [house.figures() for house in houses]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")
    if "--list" in arguments:
        for house in houses:
            print(*house.callables, *house.questions, *house.mosts, sep="\n")
            print(*(f"{name}: {', '.join(places)}" for name, places in house.repeated_types.items()), sep="\n")
            print(*house.needed_by("segments"), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
