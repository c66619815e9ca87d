"""Errors: the tree in the docstring is the tree, and a fault moves to where its caller finds it."""

import inspect
import re

import pytest

from likewise import errors
from likewise.errors import Fault, Invalid, LikewiseError, ModelNotAllowed


def test_the_tree_at_the_top_is_the_tree_of_the_classes() -> None:
    drawn: list[tuple[str, str | None]] = []
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"((?:│   |    |├── |└── )*)([A-Z]\w+)(?:  |$)", line):
            depth = len(found[1]) // 4
            drawn.append((found[2], above[depth - 1] if depth else None))
            above[depth:] = [found[2]]
    there = {
        name: one.__base__.__name__
        for name, one in vars(errors).items()
        if inspect.isclass(one) and issubclass(one, LikewiseError) and one is not LikewiseError and one.__base__
    }
    assert dict(drawn) == {"LikewiseError": None, **there}


@pytest.mark.parametrize(
    ("pointer", "old", "new", "moved"),
    [
        ("/query", "/query", "/query_text", "/query_text"),
        ("/query/3", "/query", "/query_text", "/query_text/3"),
        ("/query_text", "/query", "/q", "/query_text"),
        ("/limit", "/query", "/query_text", "/limit"),
        ("/records/2/text", "/records", "", "/2/text"),
        ("/2/text", "", "/points", "/points/2/text"),
        ("/2/text", "", lambda place: f"/{place + 500}", "/502/text"),
        ("/2", "", lambda place: f"/{place + 500}", "/502"),
        ("/model", "", lambda place: f"/{place + 500}", "/model"),
        ("/texts/3", "/texts", "/{}/text".format, "/3/text"),
        ("/texts", "/texts", "/{}/text".format, "/texts"),
    ],
)
def test_a_fault_moves_with_what_it_is_in(pointer: str, old: str, new: str, moved: str) -> None:
    assert Fault(pointer, "code", "words").moved(old, new) == Fault(moved, "code", "words")


def test_an_error_whose_faults_move_is_the_same_in_everything_else() -> None:
    error = ModelNotAllowed()
    moved = error.moved("/model", "/options/model")
    assert type(moved) is ModelNotAllowed
    assert (moved.detail, moved.code, str(moved)) == (error.detail, error.code, str(error))
    assert [fault.pointer for fault in moved.faults] == ["/options/model"]
    assert [fault.pointer for fault in error.faults] == ["/model"]
    assert Invalid("words", code="odd").moved("", "/x").code == "odd"
