"""Files become records with stable ids."""

import os
from pathlib import Path

import pytest

from likewise.cli.files import PART_CHARS, of_lines, owner_of, source, sources


def ids(path: Path) -> list[str]:
    return [record.id for file in sources(path) for record in file.records]


def faults(path: Path) -> list[str]:
    return [fault for file in sources(path) for fault in file.faults]


def test_a_folder_is_read_by_name_without_what_is_hidden(tmp_path: Path) -> None:
    # Given
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("z.txt", "b/a.md", ".git/x.txt", ".hidden.txt", "picture.png"):
        (tmp_path / name).write_text("text", "utf-8")
    # Then
    assert ids(tmp_path) == [f"{tmp_path.name}/z.txt", f"{tmp_path.name}/b/a.md"]
    assert {record.parent for file in sources(tmp_path) for record in file.records} == {str(tmp_path)}


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all: it", "utf-8")
    ((record,),) = (file.records for file in sources(tmp_path / "Makefile"))
    assert (record.id, record.text, record.parent) == ("Makefile", "all: it", str(tmp_path / "Makefile"))


def test_a_long_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    # Given
    paragraphs = [f"{number} " + "word " * 100 for number in range(10)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs), "utf-8")
    # When
    records = source(tmp_path / "long.txt", "long.txt", str(tmp_path)).records
    # Then
    assert [record.id for record in records] == [f"long.txt#{number}" for number in range(1, 6)]
    assert all(len(record.text or "") <= PART_CHARS for record in records)
    assert records[1].payload == {"path": "long.txt", "part": 2}
    assert "".join("".join((record.text or "").split()) for record in records) == "".join("".join(paragraphs).split())


@pytest.mark.parametrize("text", ["x" * 5_000, "word " * 2_000, " ".join(["y" * 2_000] * 3)])
def test_a_long_paragraph_loses_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, "utf-8")
    records = source(tmp_path / "a.txt", "a.txt", str(tmp_path)).records
    assert "".join("".join((record.text or "").split()) for record in records) == "".join(text.split())
    assert all(0 < len(record.text or "") <= PART_CHARS for record in records)


def test_markdown_is_cut_at_headings_but_not_in_code(tmp_path: Path) -> None:
    # Given
    text = "Before\n\n# Pumps\n\nCold.\n\n```sh\n# no heading\n```\n\n## Valves ##\n\nLeak.\n\n# Empty\n"
    (tmp_path / "a.md").write_text(text, "utf-8")
    # When
    records = source(tmp_path / "a.md", "a.md", str(tmp_path)).records
    # Then
    assert [record.payload.get("heading") for record in records] == [None, "Pumps", "Valves"]
    assert records[1].text == "Pumps\n\nCold.\n\n```sh\n# no heading\n```"


def test_json_lines_keep_their_ids_and_name_bad_lines() -> None:
    lines = [
        b'{"id": "a", "text": "x", "payload": {"n": 1}}\n',
        b"\n",
        b"{\n",
        b'{"text": "y"}\n',
        b'{"id": "b"}\n',
        b"[]",
    ]
    found = of_lines(lines, "f.jsonl")
    assert [(record.id, record.text) for record in found.records] == [("a", "x"), ("f.jsonl#4", "y")]
    assert found.faults == [
        "f.jsonl, line 3: is not valid JSON in UTF-8",
        "f.jsonl, line 5: /text: This field is required.",
        "f.jsonl, line 6: is not a JSON object",
    ]


def test_a_line_with_an_id_is_its_own_and_one_without_the_files() -> None:
    found = of_lines([b'{"id": "a", "text": "x"}', b'{"text": "y"}', b'{"text": "z", "parent": "p"}'], "f", "/k")
    assert [(record.id, record.parent) for record in found.records] == [("a", None), ("f#2", "/k"), ("f#3", "p")]


def test_a_number_that_is_too_long_is_said_to_be() -> None:
    found = of_lines([b'{"id": "a", "text": "x", "payload": {"n": ' + b"1" * 5_000 + b"}}"], "f")
    assert "too long" in found.faults[0]


def test_what_cannot_be_read_is_named_and_not_waited_for(tmp_path: Path) -> None:
    # Given
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "good.txt").write_text("good", "utf-8")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    # Then
    assert faults(tmp_path) == [
        f"{tmp_path.name}/dangling.txt: no such file or directory",
        f"{tmp_path.name}/fifo.txt: is not a regular file",
        f"{tmp_path.name}/latin.txt: is not text in UTF-8",
        f"{tmp_path.name}/nul.txt: is not text: it has NUL bytes",
    ]
    assert ids(tmp_path) == [f"{tmp_path.name}/good.txt"]


@pytest.mark.parametrize("name", ["nope.txt", "lines.jsonl"])
def test_a_file_that_is_named_is_called_by_the_path_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "lines.jsonl").write_text("{")
    monkeypatch.chdir(tmp_path.parent)
    for path in (tmp_path / name, Path(tmp_path.name, name)):
        assert [fault.startswith((f"{path}: ", f"{path}, line 1: ")) for fault in faults(path)] == [True]


def test_links_are_followed_to_files_within_only(tmp_path: Path) -> None:
    # Given
    folder = tmp_path / "notes"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("outside", "utf-8")
    (folder / "inside.txt").write_text("inside", "utf-8")
    (folder / "in.txt").symlink_to("inside.txt")
    (folder / "out.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "own.txt").symlink_to("own.txt")
    # Then
    assert ids(folder) == ["notes/in.txt", "notes/inside.txt"]
    assert faults(folder) == [
        "notes/out.txt: is a link that leads out of the folder",
        "notes/own.txt: too many levels of symbolic links",
    ]


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text", "utf-8")
    (tmp_path / "link").symlink_to("real")
    assert ids(tmp_path / "link") == ["real/a.txt"]
    assert owner_of(tmp_path / "link") == str(tmp_path / "real")


@pytest.mark.parametrize("name", [b"\xff.txt", b"a\nb.txt", b"\x1b[31m.txt"])
def test_a_name_that_cannot_be_an_id_is_a_fault(tmp_path: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x", "utf-8")
    assert ids(tmp_path) == []
    assert len(faults(tmp_path)) == 1
    faults(tmp_path)[0].encode("utf-8")
    assert faults(tmp_path)[0].isprintable()


def test_a_folder_that_cannot_be_entered_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given: as root every folder can be entered
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("x", "utf-8")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    # Then
    assert ids(tmp_path) == [f"{tmp_path.name}/a.txt"]
    assert faults(tmp_path) == [f"{tmp_path.name}/locked: permission denied"]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert source(tmp_path / "a.txt", "a.txt", str(tmp_path)).records[0].text == "hello"
