"""A request's body as it is read: whole, or line by line while it arrives, and what the server holds of it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from fastapi import Depends, Request

from likewise.apps.checking import checked, parse_json
from likewise.apps.declaration import declaration_in
from likewise.errors import TooLarge

# Parsing and checking 1 MiB takes up to 30 ms; what is larger must not hold up the other requests.
PARSE_IN_THREAD = 2**20
# A text of 200,000 characters with each as two escapes of six bytes, 64 KiB of payload with each byte as one, and ids.
MAX_LINE_BYTES = 3 * 2**20
# Where the request's scope has what takes bytes that are done with out of those that the server holds.
RELEASE = "likewise.release"
# From its first character that is no space, so that millions of blank lines are passed over at once.
_LINE = re.compile(rb"\S[^\n]*")

T = TypeVar("T")


async def parsed(request: Request) -> Any:
    """Return the request's JSON body as the model that its route declares; see `read_json`."""
    model = declaration_in(request.scope).body.model
    assert model is not None, "the route declares no model"
    return await read_json(request, lambda value: checked(model, value))


# A route's parameter for its body. It is read after the parameters before it: who is calling is settled before a byte.
PARSED = Depends(parsed)


async def read_json(request: Request, check: Callable[[Any], T]) -> T:
    """Return the request's JSON body as `check` makes it; UnsupportedMediaType, Malformed or Invalid if it is none.

    Media type, size and depth are checked before anything is built.
    """
    declaration_in(request.scope).body.refuse_other(request.headers)
    raw = await request.body()
    if len(raw) < PARSE_IN_THREAD:
        return check(parse_json(raw))
    return await asyncio.to_thread(lambda: check(parse_json(raw)))


class Lines:
    """The lines of a body while it arrives, without those that are blank, each with its number from 0.

    A line that is longer than any record comes as None. What has come counts as held until `release`.
    """

    def __init__(self, request: Request) -> None:
        """Refuse a body that is encoded otherwise than its route declares, or not in UTF-8."""
        declaration_in(request.scope).body.refuse_other(request.headers)
        self._request = request
        self._tail = bytearray()
        self._held = 0

    def release(self, *, but: int) -> None:
        """Give the lines back that were taken, as they are done with, except for so many bytes of them."""
        done = self._held - but - len(self._tail)
        if done > 0:
            self._done_with(done)

    def _done_with(self, count: int) -> None:
        self._held -= count
        release: Callable[[int], None] | None = self._request.scope.get(RELEASE)
        if release is not None:
            release(count)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes | None]]:
        """Read on, as fast as the lines are taken."""
        number, skipping = 0, False
        async for chunk in self._request.stream():
            self._held += len(chunk)
            end = chunk.rfind(b"\n") + 1
            if end:
                block = chunk[chunk.find(b"\n") : end] if skipping else bytes(self._tail) + chunk[:end]
                self._tail, skipping, blank = bytearray(), False, True
                for within, line in _numbered(block):
                    blank = False
                    yield number + within, line if len(line) <= MAX_LINE_BYTES else None
                if blank:
                    # Nobody is given any of it, who would say when it is done with.
                    self._done_with(len(block))
                number += block.count(b"\n")
            if skipping:
                self._done_with(len(chunk))
                continue
            self._tail += chunk[end:]
            if len(self._tail) > MAX_LINE_BYTES:
                self._tail, skipping = bytearray(), True
                yield number, None
        for _, line in _numbered(bytes(self._tail)):
            yield number, line


def _numbered(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, one at a time, with their numbers from 0."""
    number = reached = 0
    for line in _LINE.finditer(block):
        number += block.count(b"\n", reached, line.start())
        reached = line.start()
        yield number, line[0]


async def hold(request: Request, max_bytes: int) -> bytes:
    """Read the whole body and keep it for whoever reads it next; TooLarge if it has more than `max_bytes`.

    It counts as held until the request is answered.
    """
    request.scope.pop(RELEASE, None)
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"With an Idempotency-Key a body may have {max_bytes} bytes. Send the lines in parts.")
        parts.append(chunk)
    # Where Starlette's own Request.body() keeps it.
    request._body = b"".join(parts)  # noqa: SLF001
    return request._body  # noqa: SLF001
