"""`likewise usage`: what was embedded, and what that cost."""

from dataclasses import asdict
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.names import unknown_tenant
from likewise.cli.running import OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import counted, note, printable, say_json
from likewise.errors import Invalid
from likewise.filters import rfc_3339
from likewise.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from likewise.apps.embed.usage import UsageReport
    from likewise.embedding.costs import Usage

BAR_WIDTH = 24
# Wide enough for every column; a table that is narrower takes no more than it needs.
WIDEST = 200


class By(StrEnum):
    """What the sums are of."""

    MODEL = "model"
    DAY = "day"
    HOUR = "hour"
    TENANT = "tenant"


_TIME = "as 2026-01-31T12:00:00Z, or a day, as 2026-01-31 (UTC)"
Since = Annotated[str | None, typer.Option(help=f"From when on, {_TIME}; absent: 30 days before the end.")]
Until = Annotated[str | None, typer.Option(help=f"Until when, {_TIME}; absent: now.")]
Of = Annotated[By, typer.Option("--by", help="What the sums are of.")]
Tenant = Annotated[str | None, typer.Option(help="Only what this tenant used; absent: all of them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def usage(
    since: Since = None, until: Until = None, by: Of = By.MODEL, tenant: Tenant = None, as_json: AsJson = False
) -> None:
    """Show what was embedded and what it cost, in whole hours.

    What servers and workers embedded in the last two seconds may not be in it yet.
    """
    from likewise.apps.embed.usage import window  # noqa: PLC0415

    settings = settings_of_verb()
    try:
        times = window(_moment(since, "--since"), _moment(until, "--until"))
    except Invalid as error:
        raise typer.BadParameter(error.detail, param_hint="--since") from None
    run(partial(_usage, settings=settings, times=times, by=by, tenant=tenant, as_json=as_json))


async def _usage(
    _: Interruption,
    *,
    settings: Settings,
    times: tuple[datetime, datetime],
    by: By,
    tenant: str | None,
    as_json: bool,
) -> int:
    report = await _read(settings, times, by, tenant)
    if as_json:
        say_json({"tenant": tenant} | asdict(report))
    elif not report.usage:
        note(f"Nothing was embedded {_between(report)}.")
    else:
        note(f"What was embedded {_between(report)}, in US dollars:")
        _show(report)
    return OK


async def _read(settings: Settings, times: tuple[datetime, datetime], by: By, tenant: str | None) -> "UsageReport":
    from likewise.apps.embed.usage import reported  # noqa: PLC0415
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db import usage  # noqa: PLC0415

    async with opened_as_owner(settings, "What all tenants used is read by the owner of the database.") as owner:
        if tenant is None:
            rows = await usage.grouped_of_all(owner, *times, by.value)
        else:
            number = await usage.tenant_of(owner, tenant)
            if number is None:
                raise unknown_tenant()
            rows = await usage.grouped(owner, number, *times, by.value)
    return reported(*times, by.value, rows)


def _show(report: "UsageReport") -> None:
    """A table on stdout, with a bar for each row's share of the cost, or of the tokens where nothing cost anything."""
    # Imported here: only a verb that draws should pay for it.
    from rich.console import Console  # noqa: PLC0415

    Console(width=WIDEST, highlight=False).print(_table(report))
    if report.total.estimated:
        tokens = counted(report.total.estimated, "token was", "tokens were")
        note(f"~ {tokens} not counted by anybody, but estimated from the characters.")


def _table(report: "UsageReport") -> "Table":
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from likewise.embedding.costs import COUNTED, Usage  # noqa: PLC0415

    measured = "cost" if report.total.cost else "tokens"
    rows = [(_label(row[report.group_by]), Usage(*(row[name] for name in COUNTED))) for row in report.usage]
    most = max(getattr(one, measured) for _, one in rows)
    table = Table(box=None, pad_edge=False)
    table.add_column(report.group_by)
    for title in ("texts", "cached", "tokens", "cut off", "cost", "avoided"):
        table.add_column(title, justify="right")
    table.add_column(measured)
    for label, one in rows:
        bar = ProgressBar(total=most or 1, completed=getattr(one, measured), width=BAR_WIDTH)
        table.add_row(Text(printable(label)), *_cells(one), bar)
    table.add_row("total", *_cells(report.total), style="bold")
    return table


def _cells(one: "Usage") -> list[str]:
    tokens = f"{'~' if one.estimated else ''}{one.tokens:,}"
    return [
        f"{one.texts:,}",
        f"{one.cached:,}",
        tokens,
        f"{one.truncated:,}",
        _dollars(one.cost),
        _dollars(one.cost_avoided),
    ]


def _dollars(cost: float) -> str:
    """To the cent, and to the millionth where that would say nothing."""
    if not cost:
        return "0"
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.6f}"


def _label(key: str | datetime | None) -> str:
    if isinstance(key, datetime):
        return f"{key.astimezone(UTC):%Y-%m-%d %H:%M}"
    return key or "-"


def _between(report: "UsageReport") -> str:
    return f"between {report.since:%Y-%m-%d %H:%M} and {report.until:%Y-%m-%d %H:%M} UTC"


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
