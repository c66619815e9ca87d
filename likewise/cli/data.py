"""Verbs that put data in and find it again: embed, index, search, similar."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.running import FAILED, OK, PARTLY, Interruption, opened, run, settings_of_verb
from likewise.cli.terminal import first_line, note, progress, say, say_json
from likewise.errors import LikewiseError, NotFound

if TYPE_CHECKING:
    from likewise.apps.collections.service import SearchRequest, SearchResult
    from likewise.library import Likewise

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Most hits to show.")]
