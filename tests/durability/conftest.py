"""What servers that are killed stand on."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from likewise.testing import open_folder


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """A data folder that outlives the servers on it."""
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)
