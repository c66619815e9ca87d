"""The commands as a person or a script runs them: what they print, and their exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from likewise.testing import Upstream
from tests.cli.conftest import PROGRAM, Run
from tests.cli.screen import on_a_terminal
from tests.patience import PATIENCE, reads_standard_input
from tests.search.rerankers import BERT

OK, FAILED, USAGE, NOT_STARTED, PARTLY = 0, 1, 2, 3, 4
# Without a model the texts of this file's tests wait for as long as they run.
PATIENT = {"LIKEWISE_LEASE_SECONDS": "3600"}


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_help_names_every_command(likewise_command: Run) -> None:
    done = likewise_command("--help")
    assert done.returncode == OK
    for verb in (
        "demo",
        "serve",
        "worker",
        "embed",
        "index",
        "search",
        "similar",
        "models",
        "db",
        "keys",
        "tenants",
        "token",
        "usage",
        "doctor",
    ):
        assert f"  {verb} " in done.stdout


def test_the_version(likewise_command: Run) -> None:
    done = likewise_command("--version")
    assert (done.returncode, one_line(done.stdout).count(".")) == (OK, 2)


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["search"], ["search", "x"], ["serve", "--port", "x"], ["embed"], ["db", "x"]]
)
def test_wrong_usage_is_2(likewise_command: Run, arguments: list[str]) -> None:
    done = likewise_command(*arguments)
    assert done.returncode == USAGE
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LIKEWISE_PROT": "1"}, "LIKEWISE_PROT"),
        ({"LIKEWISE_PORT": "secret"}, "LIKEWISE_PORT"),
        ({"LIKEWISE_HOST": "0.0.0.0"}, "LIKEWISE_HOST"),
        ({"LIKEWISE_AUTH": "passwords"}, "LIKEWISE_AUTH"),
        ({"LIKEWISE_AUTH": "none,keys"}, "LIKEWISE_AUTH"),
        ({"LIKEWISE_AUTH": "dev"}, "LIKEWISE_DEV_JWT_SECRET"),
        ({"LIKEWISE_AUTH": "jwks"}, "LIKEWISE_JWKS_URL"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    likewise_command: Run, variables: dict[str, str], named: str
) -> None:
    done = likewise_command("serve", **variables)
    assert done.returncode == NOT_STARTED
    assert named in one_line(done.stderr)
    assert "secret" not in done.stderr


def test_a_taken_port_stops_the_start(likewise_command: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = likewise_command("serve", "--port", str(port))
    assert done.returncode == NOT_STARTED
    assert f"127.0.0.1:{port}: address already in use" in one_line(done.stderr)


def test_a_database_that_is_away_stops_the_start(likewise_command: Run) -> None:
    done = likewise_command(
        "search", "x", "-c", "notes", LIKEWISE_DATABASE_SERVING_URL="postgresql://x:pw@127.0.0.1:1/x"
    )
    assert done.returncode == NOT_STARTED
    assert "pw" not in one_line(done.stderr)


@pytest.mark.parametrize("arguments", [["serve", "--port", "0"], ["db", "status"]])
def test_a_database_that_is_away_is_so_before_it_lacks_a_role(likewise_command: Run, arguments: list[str]) -> None:
    # Given: nobody has made a role to serve as, and nobody can
    away = "postgresql://me:hidden@127.0.0.1:1/nothing"
    # When
    done = likewise_command(*arguments, LIKEWISE_DATABASE_URL=away, LIKEWISE_DATABASE_SERVING_URL="")
    # Then
    assert done.returncode == 3
    assert "LIKEWISE_DATABASE_URL cannot be reached: nothing listens at its address" in one_line(done.stderr)
    assert "db upgrade" not in done.stderr
    assert "hidden" not in done.stderr


NAMES = ("LIKEWISE_DATABASE_URL", "LIKEWISE_DATABASE_SERVING_URL", "LIKEWISE_DATABASE_DIRECT_URL")
NO_URLS = ("secret", "postgresql://x:secret@[::1/x", "host=x password=secret port")
VERBS = (["search", "x", "-c", "notes"], ["db", "upgrade"], ["db", "status"])


# Each verb meets each name and each url, and each name each url.
@pytest.mark.parametrize(
    ("verb", "name", "url"), [(VERBS[v], NAMES[n], NO_URLS[(v + n) % 3]) for v in range(3) for n in range(3)]
)
def test_an_url_that_is_none_stops_the_start_and_is_named(
    likewise_command: Run, verb: list[str], name: str, url: str
) -> None:
    done = likewise_command(*verb, **{name: url})
    assert done.returncode == NOT_STARTED
    assert f"{name} is not the URL of a database" in one_line(done.stderr)
    assert "secret" not in done.stderr


@pytest.mark.parametrize("url", ["postgresql://x:secret@127.0.0.1:99999/x", "postgresql://x:secret@127.0.0.1:x/x"])
def test_an_url_that_leads_nowhere_stops_the_start(likewise_command: Run, url: str) -> None:
    done = likewise_command("search", "x", "-c", "notes", LIKEWISE_DATABASE_SERVING_URL=url)
    assert done.returncode == NOT_STARTED
    assert "LIKEWISE_DATABASE" in one_line(done.stderr)
    assert "secret" not in done.stderr


def test_a_collection_is_made_with_a_name_that_http_can_say(likewise_command: Run, folder: Path) -> None:
    done = likewise_command("index", str(folder), "-c", "My Docs")
    assert done.returncode == FAILED
    assert "lower-case" in one_line(done.stderr)


def test_without_weights_embed_does_not_start(likewise_command: Run) -> None:
    done = likewise_command("embed", "hello")
    assert done.returncode == NOT_STARTED
    assert "likewise models pull" in one_line(done.stderr)
    assert "LIKEWISE_OFFLINE is set" in done.stderr


def test_a_models_folder_that_cannot_be_written_is_named_once_with_its_setting(
    likewise_command: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    done = likewise_command("embed", "x", LIKEWISE_OFFLINE="false", LIKEWISE_MODELS_DIR=str(tmp_path / "file" / "m"))
    assert done.returncode == NOT_STARTED
    assert one_line(done.stderr).count("cannot be written") == 1
    assert "LIKEWISE_MODELS_DIR names it" in done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of notes, with one file that is no text."""
    made = tmp_path_factory.mktemp("notes")
    (made / "pump.md").write_text("# Pumps\n\nThe pump fails in the cold.\n\n# Valves\n\nA valve leaks.\n", "utf-8")
    (made / "plain.txt").write_text("Plain words about bearings.", "utf-8")
    (made / "lines.jsonl").write_text('{"id": "j1", "text": "a gasket is torn"}\n', "utf-8")
    return made


def test_index_search_and_similar(likewise_command: Run, folder: Path) -> None:
    # When: there is no model, so vectors wait
    first = likewise_command("index", str(folder), "-c", "notes", "--json")
    again = likewise_command("index", str(folder), "-c", "notes", "--json")
    found = likewise_command("search", "torn gasket", "-c", "notes", "--json")
    shown = likewise_command("search", "torn gasket", "-c", "notes")
    # Then
    assert first.returncode == PARTLY, first.stderr
    assert json.loads(one_line(first.stdout)) | {"waiting_for_model": None} == {
        "collection": "notes",
        "files": 3,
        "created": 4,
        "changed": 0,
        "unchanged": 0,
        "removed": 0,
        "faults": [],
        "waiting_for_model": None,
    }
    assert json.loads(again.stdout)["unchanged"] == 4
    assert found.returncode == OK, found.stderr
    assert json.loads(found.stdout)["hits"][0]["id"] == "j1"
    assert json.loads(found.stdout)["degraded"] == ["model"]
    assert "j1" in shown.stdout
    assert "a gasket is torn" in shown.stdout


def test_index_removes_what_a_longer_file_left(likewise_command: Run, folder: Path) -> None:
    # Given
    changing = folder / "changing.md"
    changing.write_text("# One\n\nfirst\n\n# Two\n\nsecond\n", "utf-8")
    likewise_command("index", str(folder), "-c", "changing")
    # When
    changing.write_text("# One\n\nfirst\n", "utf-8")
    done = json.loads(likewise_command("index", str(folder), "-c", "changing", "--json").stdout)
    # Then
    assert (done["created"], done["removed"]) == (1, 2)


def test_index_reads_standard_input(likewise_command: Run) -> None:
    done = likewise_command("index", "-", "-c", "piped", "--json", input='{"id": "x", "text": "from a pipe"}\n')
    assert json.loads(done.stdout)["created"] == 1


def test_index_reads_more_than_a_batch_of_standard_input(likewise_command: Run) -> None:
    lines = "".join(json.dumps({"text": f"from line {number}"}) + "\n" for number in range(1, 1_200)) + "bad\n"
    done = likewise_command("index", "-", "-c", "long-pipe", "--json", input=lines)
    told = json.loads(done.stdout)
    assert (told["files"], told["created"]) == (1, 1_199)
    assert told["faults"] == ["stdin, line 1200: is not valid JSON in UTF-8"]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(one_line(done.stdout))
    return answer


def test_index_removes_what_is_gone_and_nothing_else(likewise_command: Run, tmp_path: Path) -> None:
    # Given
    for name in ("stays.txt", "goes.txt", "breaks.txt"):
        (tmp_path / name).write_text(name, "utf-8")
    likewise_command("index", str(tmp_path), "-c", "gone")
    likewise_command("index", "-", "-c", "gone", input='{"id": "piped", "text": "from a pipe"}\n')
    # When: one is gone, and one cannot be read
    (tmp_path / "goes.txt").unlink()
    (tmp_path / "breaks.txt").write_bytes(b"\xff")
    first = told(likewise_command("index", str(tmp_path), "-c", "gone", "--json"))
    (tmp_path / "stays.txt").unlink()
    (tmp_path / "breaks.txt").unlink()
    second = told(likewise_command("index", str(tmp_path), "-c", "gone", "--json"))
    piped = likewise_command("search", "pipe", "-c", "gone")
    # Then
    assert (first["unchanged"], first["removed"], len(first["faults"])) == (1, 1, 1)
    assert (second["files"], second["removed"]) == (0, 2)
    assert "piped" in piped.stdout


def test_folders_of_different_names_do_not_meet(likewise_command: Run, tmp_path: Path) -> None:
    for name in ("k1", "k2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"# Read\n\nabout {name}\n", "utf-8")
        done = told(likewise_command("index", str(tmp_path / name), "-c", "two", "--json"))
        assert (done["created"], done["changed"], done["removed"]) == (1, 0, 0)


def test_folders_of_the_same_name_do_not_overwrite_each_other(likewise_command: Run, tmp_path: Path) -> None:
    # Given
    first, second = tmp_path / "1" / "docs", tmp_path / "2" / "docs"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(str(folder), "utf-8")
    (second / "more.md").write_text("more", "utf-8")
    likewise_command("index", str(first), "-c", "same")
    # When
    done = likewise_command("index", str(second), "-c", "same", "--json")
    # Then
    assert done.returncode == PARTLY
    assert (told(done)["created"], told(done)["changed"], told(done)["removed"]) == (1, 0, 0)
    assert told(done)["faults"][0].startswith("docs/README.md: the collection has docs/README.md from /")


def test_another_model_than_the_collections_is_refused(likewise_command: Run, folder: Path) -> None:
    likewise_command("index", str(folder), "-c", "modelled")
    same = likewise_command("index", str(folder), "-c", "modelled", "--model", "all-MiniLM-L6-v2")
    other = likewise_command("index", str(folder), "-c", "modelled", "--model", "bge-small")
    assert same.returncode == PARTLY
    assert other.returncode == FAILED
    assert "minilm-l6-v2" in one_line(other.stderr)
    assert "bge-small" in one_line(other.stderr)


@pytest.mark.parametrize("name", ["nope", "/nowhere/at/all"])
@pytest.mark.parametrize("verb", [["serve", "--port", "0"], ["search", "x", "-c", "notes"], ["embed", "x"]])
def test_a_model_that_cannot_be_had_stops_the_start(likewise_command: Run, verb: list[str], name: str) -> None:
    done = likewise_command(*verb, LIKEWISE_MODEL=name)
    assert done.returncode == NOT_STARTED
    assert "LIKEWISE_MODEL: there is no such model" in one_line(done.stderr)


@pytest.mark.parametrize("verb", ["embed - <&-", "index - -c notes <&-"])
def test_closed_standard_input_is_wrong_usage(environment: dict[str, str], verb: str) -> None:
    command = f"{PROGRAM[0]} -c '{PROGRAM[2]}' {verb}"
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, env=environment, timeout=PATIENCE
    )
    assert done.returncode == USAGE
    assert "Standard input is closed" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "fifo"])
def test_a_path_that_cannot_be_read_is_1_and_a_line(likewise_command: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it.txt"
    if kind == "fifo":
        os.mkfifo(path)
    done = likewise_command("index", str(path), "-c", "unread")
    assert done.returncode == FAILED
    # As it was given: of files of one name nobody would know which it is.
    assert one_line(done.stderr).startswith(f"Left out: {path}: ")


def test_a_bad_file_among_good_ones_is_4(likewise_command: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "good.txt").write_text("good", "utf-8")
    done = likewise_command("index", str(tmp_path), "-c", "partly")
    assert done.returncode == PARTLY
    assert "bad.txt: is not text in UTF-8" in done.stderr


@pytest.mark.parametrize("arguments", [["search", "x", "-c", "missing"], ["similar", "x", "-c", "missing"]])
def test_a_collection_that_is_not_there_is_1_and_a_line(likewise_command: Run, arguments: list[str]) -> None:
    done = likewise_command(*arguments)
    assert done.returncode == FAILED
    assert "collection" in one_line(done.stderr)


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-", "| true", "> /dev/full"])
def test_a_closed_output_ends_quietly(environment: dict[str, str], likewise_command: Run, closing: str) -> None:
    likewise_command("index", "-", "-c", "closing", input='{"id": "x", "text": "text"}\n')
    command = f"{PROGRAM[0]} -c '{PROGRAM[2]}' search text -c closing {closing}"
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, env=environment, timeout=PATIENCE
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode in (OK, FAILED)


def test_escape_sequences_of_a_text_do_not_reach_the_terminal(likewise_command: Run) -> None:
    text = json.dumps({"id": "evil", "text": "red \x1b[31m text\x9b"})
    likewise_command("index", "-", "-c", "evil", input=text)
    done = likewise_command("search", "red text", "-c", "evil")
    assert "red" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\x9b" not in done.stdout


def test_the_database_and_the_models_are_shown(likewise_command: Run) -> None:
    upgraded = likewise_command("db", "upgrade", "--json")
    status = likewise_command("db", "status", "--json")
    models = likewise_command("models", "list", "--json")
    checked = likewise_command("models", "check")
    assert json.loads(upgraded.stdout) == {"applied": []}
    assert json.loads(status.stdout)["missing"] == []
    assert json.loads(models.stdout)["models"][0]["default"] is True
    assert json.loads(models.stdout)["models"][0]["state"] == "not here"
    assert checked.returncode == FAILED
    assert "models pull" in one_line(checked.stderr)


def test_a_reranker_is_shown_tried_and_used(likewise_command: Run) -> None:
    # Given settings that name a small one, and a collection
    chosen = {"LIKEWISE_RERANKER": str(BERT), "LIKEWISE_PRECISION": "f32"}
    lines = "".join(json.dumps({"id": one, "text": f"the pump is {one}"}) + "\n" for one in ("blue", "cold"))
    likewise_command("index", "-", "--collection", "reranked", input=lines)
    # Then it is shown among the models, and works
    listed = json.loads(likewise_command("models", "list", "--json", **chosen).stdout)["models"]
    told = {row["name"]: (row["kind"], row["default"], row["allowed"], row["state"]) for row in listed}
    assert told[str(BERT)] == ("reranker", True, True, "here")
    assert told["ms-marco-MiniLM-L-6-v2"] == ("reranker", False, False, "not here")
    assert "reranker" in likewise_command("models", "list", **chosen).stdout
    checked = likewise_command("models", "check", str(BERT), **chosen)
    assert "works: a reranker, 64 tokens, openvino" in one_line(checked.stdout), checked.stderr
    assert "pairs/s" in checked.stdout
    # And a search has its scores
    found = likewise_command("search", "a cold pump", "--collection", "reranked", "--rerank", "--json", **chosen)
    hits = json.loads(found.stdout)["hits"]
    assert len(hits) == 2
    assert 1 > hits[0]["score"] >= hits[1]["score"] > 0
    # Without it that is said
    refused = likewise_command("search", "a cold pump", "--collection", "reranked", "--rerank")
    assert refused.returncode == FAILED
    assert "LIKEWISE_RERANKER" in refused.stderr


async def test_a_remote_model_is_shown_asked_and_used(likewise_command: Run) -> None:
    # Given a server with OpenAI's models, and its key
    async with Upstream(1536).running() as openai:
        chosen = {"LIKEWISE_OPENAI_BASE_URL": openai.url, "LIKEWISE_OPENAI_API_KEY": "canary"}
        chosen["LIKEWISE_MODEL"] = "text-embedding-3-small"

        async def told(*arguments: str, **variables: str) -> str:
            done = await asyncio.to_thread(likewise_command, *arguments, **(chosen | variables))
            assert "canary" not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            return done.stdout + done.stderr

        # Then it is shown as remote, has nothing to pull, and works
        listed = json.loads(await told("models", "list", "--json"))["models"]
        assert [row["state"] for row in listed if row["name"] == "text-embedding-3-large"] == ["remote"]
        assert (listed[0]["name"], listed[0]["state"]) == ("text-embedding-3-small", "remote")
        assert "nothing to pull" in await told("models", "pull")
        assert not openai.asked
        assert f"1536 dimensions, 8191 tokens, at {openai.url}" in await told("models", "check")
        assert len(openai.asked) == 1
        assert len(json.loads(await told("embed", "red fox", "--json"))["embedding"]) == 1536
        # And without its key that is said
        assert "set LIKEWISE_OPENAI_API_KEY" in await told("embed", "red fox", LIKEWISE_OPENAI_API_KEY="")


def test_the_doctor_names_the_fault_and_its_mend(likewise_command: Run) -> None:
    done = likewise_command("doctor", "--json", **PATIENT)
    findings = {finding["part"]: finding for finding in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == FAILED
    assert [part for part, finding in findings.items() if finding["mend"]] == ["model"]
    assert "models pull" in findings["model"]["mend"]
    assert {"python", "settings", "data folder", "disk", "database", "waiting"} <= set(findings)


@pytest.mark.parametrize(
    ("name", "words", "mend"),
    [
        ("text-embedding-ada-002", "needs the key of its provider", "LIKEWISE_OPENAI_API_KEY"),
        ("nope", "no such model", "LIKEWISE_MODEL"),
    ],
)
def test_the_doctor_knows_a_model_that_cannot_be_had(likewise_command: Run, name: str, words: str, mend: str) -> None:
    done = likewise_command("doctor", "--json", LIKEWISE_MODEL=name, **PATIENT)
    findings = {finding["part"]: finding for finding in map(json.loads, done.stdout.splitlines())}
    assert [part for part, finding in findings.items() if finding["mend"]] == ["model"]
    assert words in findings["model"]["what"]
    assert mend in findings["model"]["mend"]


@pytest.mark.parametrize("end", ["file/below", 'with "quotes"', "with $dollar"])
def test_the_doctor_attempts_every_check(likewise_command: Run, tmp_path: Path, end: str) -> None:
    # Given: no database is named, and the data folder is none, or one that initdb cannot take
    (tmp_path / "file").write_text("", "utf-8")
    unset = {"LIKEWISE_DATABASE_URL": "", "LIKEWISE_DATABASE_SERVING_URL": ""}
    # When
    done = likewise_command("doctor", "--json", LIKEWISE_DATA_DIR=str(tmp_path / end), **unset)
    # Then
    findings = {finding["part"]: finding for finding in map(json.loads, done.stdout.splitlines())}
    assert {"data folder", "disk", "model", "database"} <= set(findings)
    assert "LIKEWISE_DATA_DIR" in findings["database"]["what"]
    assert "LIKEWISE_DATABASE_URL" not in findings["database"]["mend"]


def test_the_doctor_lists_the_settings_without_their_values(likewise_command: Run) -> None:
    done = likewise_command("doctor", "--settings", LIKEWISE_DATABASE_URL="postgresql://me:hidden@host/db")
    assert "LIKEWISE_DATABASE_URL (set)" in done.stdout
    assert "hidden" not in done.stdout


def test_the_doctor_knows_settings_of_a_file_and_in_small_letters(
    likewise_command: Run, environment: dict[str, str]
) -> None:
    file = Path(environment["LIKEWISE_DATA_DIR"], ".env")
    file.write_text("LIKEWISE_PORT=8081\n", "utf-8")
    try:
        done = likewise_command("doctor", "--settings", likewise_threads="1")
    finally:
        file.unlink()
    assert "LIKEWISE_PORT (set)" in done.stdout
    assert "LIKEWISE_THREADS (set)" in done.stdout
    assert "LIKEWISE_HOST\n" in done.stdout


def test_the_doctor_prints_findings_and_nothing_else(likewise_command: Run) -> None:
    done = likewise_command("doctor", LIKEWISE_DATABASE_SERVING_URL="postgresql://x:secret@127.0.0.1:1/x")
    assert done.returncode == FAILED
    assert done.stderr == ""
    assert "secret" not in done.stdout


# Processes that stay


@pytest.mark.parametrize("sent", ["", '{"id": "x", "text": "one"}\n'])
def test_ctrl_c_ends_what_waits_for_standard_input(environment: dict[str, str], sent: str) -> None:
    # Given
    process = started(environment, "index", "-", "-c", "waits", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(sent)
    process.stdin.flush()
    until_it_reads(process)
    # When
    process.send_signal(signal.SIGINT)
    process.wait(timeout=PATIENCE)
    # Then
    assert process.returncode == 130
    assert ended(process)[2] == ""


def until_it_reads(process: subprocess.Popen[str]) -> None:
    if not Path("/proc").exists():
        # Nobody knows when it does.
        time.sleep(2)
        return
    while not reads_standard_input(process.pid) and process.poll() is None:
        time.sleep(0.01)


def started(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_server_cleanly(environment: dict[str, str], number: int, times: int) -> None:
    # Given
    process = started(environment, "serve", "--port", "0", "--json")
    assert process.stdout is not None
    listening = json.loads(process.stdout.readline())
    assert listening["status"] == "listening"
    # When
    for _ in range(times):
        process.send_signal(number)
    code, _, errors = ended(process)
    # Then
    assert code == OK
    assert "Traceback" not in errors


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_a_signal_while_starting_ends_it_quietly(environment: dict[str, str], seconds: float) -> None:
    process = started(environment, "search", "x", "-c", "notes")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, _, errors = ended(process)
    assert code in (OK, FAILED, 130, -signal.SIGINT)
    assert "Task was destroyed" not in errors


def test_the_worker_ends_with_sigterm(environment: dict[str, str]) -> None:
    process = started(environment, "worker", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"status": "working"}
    process.terminate()
    assert ended(process)[0] == OK


def test_on_a_terminal_there_is_a_bar(environment: dict[str, str], folder: Path) -> None:
    # When
    shown = on_a_terminal(environment, "index", str(folder), "-c", "bars")
    # Then
    assert "Embedding" in shown
    assert "\x1b[" in shown
