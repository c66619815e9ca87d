"""Log lines: JSON, one a line, and nobody's texts, ids or queries in them."""

import asyncio
import gc
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import psycopg
import pytest

from likewise.library import Likewise
from likewise.observe import logs
from likewise.observe.logs import describe, get_logger, log_unhandled

SECRET = "xyzzy-secret"
# What the pool of the file's server says of a connection that it began to open, and that a busy machine held up.
LATE = "error connecting in '<str>': <TimeoutError>"


@pytest.fixture
def lines() -> Iterator[Any]:
    """Reads what was logged since."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("info", stream)
    yield lambda: [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] != LATE]
    root.handlers[:], root.level = handlers, level


async def test_a_request_is_one_line_with_its_template(client: httpx2.AsyncClient, lines: Any) -> None:
    # When
    await client.get(f"/api/v1/collections/notes/records/{SECRET}?q={SECRET}", headers={"x-request-id": "abc"})
    # Then
    (line,) = lines()
    assert line["route"] == "/api/v1/collections/{name}/records/{record_id:path}"
    assert (line["event"], line["method"], line["status"], line["request_id"]) == ("request", "GET", 404, "abc")
    assert line["ms"] > 0
    assert SECRET not in json.dumps(line)


async def test_a_body_of_lines_is_logged_with_its_template_too(client: httpx2.AsyncClient, lines: Any) -> None:
    await client.post(
        "/api/v1/collections/notes/records", content=b"{}\n", headers={"content-type": "application/x-ndjson"}
    )
    (line,) = lines()
    assert line["route"] == "/api/v1/collections/{name}/records"


async def test_texts_queries_and_filters_are_not_logged(
    client: httpx2.AsyncClient, shared: Likewise, lines: Any, monkeypatch: Any
) -> None:
    async def broken(*_: Any) -> None:
        raise psycopg.errors.UniqueViolation(f"Key (id)=({SECRET}) already exists.") from ValueError(SECRET)

    # When
    url = "/api/v1/collections/notes"
    await client.post(f"{url}/records", json=[{"id": SECRET, "text": SECRET, "bad": SECRET}])
    await client.post(f"{url}/search", json={"query": SECRET, "filters": {SECRET: {"$bad": SECRET}}})
    monkeypatch.setattr(shared.collections, "search", broken)
    await client.post(f"{url}/search", json={"query": SECRET})
    # Then
    found = lines()
    assert SECRET not in json.dumps(found)
    (failure,) = [line for line in found if line["event"] == "request_failed"]
    assert (failure["error"], failure["sqlstate"]) == ("psycopg.errors.UniqueViolation", "23505")
    assert failure["cause"] == "ValueError"
    assert failure["request_id"]


def test_control_characters_are_escaped(lines: Any) -> None:
    stream = io.StringIO()
    logs.configure("info", stream)
    get_logger("likewise.test").info("a\nb\x1b[31m\x7f\x9b\u202e", value="\r\n")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert all(" " <= character <= "~" for character in line[:-1])


def test_values_in_lines_of_libraries_are_left_out(lines: Any) -> None:
    logging.getLogger("psycopg.pool").warning(
        "error connecting in %r: %s", "postgresql://me:pw@host", ValueError(SECRET)
    )
    logging.getLogger("psycopg.pool").warning("waiting %s s", 3)
    logging.getLogger("psycopg.pool").info("chatter")
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")
    first, second, third = lines()
    assert first["event"] == "error connecting in <str>: <ValueError>" or "pw" not in first["event"]
    assert second["event"] == "waiting 3 s"
    assert third["error"] == "ValueError"
    assert SECRET not in json.dumps([first, second, third])


def test_an_error_is_described_without_its_message() -> None:
    try:
        try:
            json.loads(SECRET)
        except ValueError as error:
            raise RuntimeError(SECRET) from error
    except RuntimeError as error:
        described = describe(error, trace=True)
    assert described["error"] == "RuntimeError"
    assert described["cause"] == "json.decoder.JSONDecodeError"
    assert SECRET not in json.dumps(described)


async def fails() -> None:
    raise ValueError(SECRET)


def dropped_task() -> None:
    task = asyncio.ensure_future(fails())
    task.add_done_callback(lambda _: None)


def dropped_future() -> None:
    asyncio.get_running_loop().create_future().set_exception(ValueError(SECRET))


def broken_callback() -> None:
    def breaks(_: str) -> None:
        raise ValueError(SECRET)

    asyncio.get_running_loop().call_soon(breaks, SECRET)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("drop", [dropped_task, dropped_future, broken_callback])
async def test_an_error_that_nobody_waits_for_is_logged_without_its_message(
    lines: Any, drop: Callable[[], None], ours: bool
) -> None:
    # Given: the loop of the command line, or one of a program that uses the library
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(None)
    if ours:
        log_unhandled(loop)
    # When
    try:
        drop()
        await asyncio.sleep(0.05)
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(before)
    # Then
    (line,) = lines()
    assert (line["level"], line["error"]) == ("error", "ValueError")
    assert line["logger"] == ("likewise.observe.logs" if ours else "asyncio")
    assert SECRET not in json.dumps(line)


def test_a_finished_sentence_of_a_library_is_not_shown(lines: Any) -> None:
    logging.getLogger("elsewhere").error("cannot read xyzzy-secret")
    logging.getLogger("elsewhere").error(ValueError(SECRET))
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    events = [line["event"] for line in lines()]
    assert events == ["a message that may hold values"] * 2 + ["Invalid HTTP request received."]


def test_a_program_that_has_set_up_no_logging_reads_no_raw_events() -> None:
    """Its errors say what is wrong; Python would write each warning to its stderr as a dict."""
    program = "import logging, likewise.library; logging.getLogger('likewise.embedding').warning({'event': 'loud'})"
    # When
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # Then
    assert ended.stderr == ""
    # And one that has set it up reads them
    ended = subprocess.run(
        [sys.executable, "-c", f"import logging; logging.basicConfig(); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loud" in ended.stderr
