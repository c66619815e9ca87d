"""`likewise usage`: show what was embedded, and what that cost."""

from dataclasses import asdict
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from likewise.apps.embed.usage import UsageReport, reported, window
from likewise.cli.opening import open_as_owner, tenant_id
from likewise.cli.running import AsJson, command_settings, run
from likewise.cli.terminal import counted, note, printable, say_json
from likewise.db import usage as usage_rows
from likewise.embedding.costs import COUNTED, Usage
from likewise.errors import Invalid
from likewise.filters import rfc_3339
from likewise.settings import Settings

BAR_WIDTH = 24
# Wide enough for every column; a table that is narrower takes no more than it needs.
MAX_WIDTH = 200
BY_OWNER = "What all tenants used is read by the owner of the database."

_TIME = "as 2026-01-31T12:00:00Z, or a day, as 2026-01-31 (UTC)"


class UsageGrouping(StrEnum):
    """A key to sum the usage by."""

    MODEL = "model"
    DAY = "day"
    HOUR = "hour"
    TENANT = "tenant"


def usage(
    since: Annotated[str | None, typer.Option(help=f"From when on, {_TIME}; absent: 30 days before the end.")] = None,
    until: Annotated[str | None, typer.Option(help=f"Until when, {_TIME}; absent: now.")] = None,
    by: Annotated[UsageGrouping, typer.Option(help="What the sums are of.")] = UsageGrouping.MODEL,
    tenant: Annotated[str | None, typer.Option(help="Only what this tenant used; absent: all of them.")] = None,
    as_json: AsJson = False,
) -> None:
    settings = command_settings()
    try:
        times = window(_moment(since, "--since"), _moment(until, "--until"))
    except Invalid as error:
        raise typer.BadParameter(error.detail, param_hint="--since") from None

    async def show() -> None:
        report = await _report(settings, times, by, tenant)
        if as_json:
            say_json({"tenant": tenant} | asdict(report))
        else:
            _show(report)

    run(lambda _: show())


async def _report(
    settings: Settings, times: tuple[datetime, datetime], by: UsageGrouping, tenant: str | None
) -> UsageReport:
    async with open_as_owner(settings, BY_OWNER) as owner:
        if tenant is None:
            rows = await usage_rows.grouped_of_all(owner, *times, by.value)
        else:
            rows = await usage_rows.grouped(owner, await tenant_id(owner, tenant), *times, by.value)
    return reported(*times, by.value, rows)


def _show(report: UsageReport) -> None:
    """Print a table, with a bar for each row's share of the cost, or of the tokens where nothing cost anything."""
    between = f"between {report.since:%Y-%m-%d %H:%M} and {report.until:%Y-%m-%d %H:%M} UTC"
    if not report.usage:
        note(f"Nothing was embedded {between}.")
        return
    note(f"What was embedded {between}, in US dollars:")
    Console(width=MAX_WIDTH, highlight=False).print(_table(report))
    if report.total.estimated:
        tokens = counted(report.total.estimated, "token was", "tokens were")
        note(f"~ {tokens} not counted by anybody, but estimated from the characters.")


def _table(report: UsageReport) -> Table:
    measured = "cost" if report.total.cost else "tokens"
    rows = [(_label(row[report.group_by]), Usage(*(row[name] for name in COUNTED))) for row in report.usage]
    highest = max(getattr(one, measured) for _, one in rows)
    table = Table(box=None, pad_edge=False)
    table.add_column(report.group_by)
    for title in ("texts", "cached", "tokens", "cut off", "cost", "avoided"):
        table.add_column(title, justify="right")
    table.add_column(measured)
    for label, one in rows:
        bar = ProgressBar(total=highest or 1, completed=getattr(one, measured), width=BAR_WIDTH)
        table.add_row(Text(printable(label)), *_cells(one), bar)
    table.add_row("total", *_cells(report.total), style="bold")
    return table


def _cells(one: Usage) -> list[str]:
    tokens = f"{'~' if one.estimated else ''}{one.tokens:,}"
    costs = map(_dollars, (one.cost, one.cost_avoided))
    return [f"{one.texts:,}", f"{one.cached:,}", tokens, f"{one.truncated:,}", *costs]


def _dollars(cost: float) -> str:
    """Write a cost to the cent, and to the millionth where that would say nothing."""
    if not cost:
        return "0"
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.6f}"


def _label(key: str | datetime | None) -> str:
    if isinstance(key, datetime):
        return f"{key.astimezone(UTC):%Y-%m-%d %H:%M}"
    return key or "-"


def _moment(given: str | None, option: str) -> datetime | None:
    if given is None:
        return None
    moment = rfc_3339(given)
    if moment is not None:
        return moment
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(f"Write a time with its zone, {_TIME}.", param_hint=option) from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
