"""A data directory keeps the programs that fit it."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise.postgres import binaries
from likewise.postgres.binaries import PACKAGE, find_binaries, keep_copy
from likewise.postgres.server import EmbeddedServer
from tests.postgres.server_process import IS_ROOT, scratch_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as made:
        yield made


def package() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{PACKAGE} is not installed")
    return Path(spec.submodule_search_locations[0])


async def test_old_data_starts_with_its_own_programs_after_an_upgrade(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given data that the older Postgres of the package made
    older = package() / "pginstall" / "bin"
    server = await EmbeddedServer.start(folder, postgres_bin=older, durable=False)
    major = int(server.version.partition(".")[0])
    await server.close()
    assert major < find_binaries(None, folder, None).major
    # When the package has none for it any more
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package")
    server = await EmbeddedServer.start(folder, durable=False)
    # Then the kept copy serves
    assert server.version.startswith(f"{major}.")
    assert server.binaries.is_relative_to(folder)
    await server.close()


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
async def test_root_may_have_the_package_where_no_other_user_can_read(folder: Path) -> None:
    # Given an installation under a folder like /root
    closed = folder / "closed"
    closed.mkdir(0o700)
    shutil.copytree(package() / "pginstall18", closed / PACKAGE / "pginstall18", ignore=binaries.NOT_KEPT)
    shutil.copytree(package().with_name(f"{PACKAGE}.libs"), closed / f"{PACKAGE}.libs")
    for path in closed.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    # Then the server runs from its copy, and the original is as closed as before
    server = await EmbeddedServer.start(folder, postgres_bin=closed / PACKAGE / "pginstall18" / "bin", durable=False)
    assert server.binaries.is_relative_to(folder / "postgres")
    await server.close()
    assert (closed / PACKAGE / "pginstall18" / "bin" / "postgres").stat().st_mode & 0o077 == 0


def test_a_copy_replaces_that_of_an_older_minor_version(folder: Path) -> None:
    found = find_binaries(None, folder, None)
    if not found.folder.is_relative_to(package()):
        pytest.skip("the package is not what is found")
    old = folder / f"binaries-{found.major}.0-vector-0.1.0"
    other_major = folder / f"binaries-{found.major - 1}.9-vector-0.1.0"
    left = folder / ".copying-by-one-that-was-killed"
    for path in (old, other_major, left):
        path.mkdir()
    kept = keep_copy(found, folder, for_another_user=IS_ROOT)
    assert kept.folder.is_relative_to(folder)
    assert (kept.version, kept.vector) == (found.version, found.vector)
    assert not old.exists()
    assert not left.exists()
    assert other_major.exists()
    assert find_binaries(None, folder, None) == kept


def test_a_folder_that_cannot_be_written_serves_with_the_package(folder: Path) -> None:
    found = find_binaries(None, folder, None)
    assert keep_copy(found, folder / "absent", for_another_user=False) == found
