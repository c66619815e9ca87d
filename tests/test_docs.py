"""What the pages say is so: settings, links, and no address of a package index anywhere."""

import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import likewise
from likewise.library import Likewise
from tools.settings_page import PAGE, settings_page

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

LISTED = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]

# In parts, so that this file passes its own test.
INDEXES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("crates", "io"),
        ("ghcr", "io"),
    )
]


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(_prose(page)) if "://" not in link]
    assert [target for target in targets if not _resolves(page, target)] == []


def test_no_file_of_the_repository_names_a_package_index() -> None:
    listed = subprocess.run(LISTED, check=False, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is not a git repository")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    named = [
        (str(file.relative_to(ROOT)), index)
        for file in files
        if file.is_file()
        for index in INDEXES
        if index.encode() in file.read_bytes()
    ]
    assert named == []


async def test_the_example_of_the_readme_runs(
    lw: Likewise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = EXAMPLE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert example is not None
    names: dict[str, Any] = {}
    # A loop runs already.
    exec(example[1].replace("asyncio.run(main())", ""), names)
    monkeypatch.setattr(likewise, "open", lambda: nullcontext(lw))
    await names["main"]()
    assert re.search(r"^1 ", capsys.readouterr().out, re.MULTILINE)


def _resolves(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (page.parent / name) if name else page
    return file.exists() and (not anchor or anchor in {_anchor(title) for title in HEADING.findall(_prose(file))})


def _anchor(title: str) -> str:
    """The name that a heading gets: lower case, without punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))
