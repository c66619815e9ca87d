"""The usage of tenants and its cost, until it is taken to be kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from likewise.observe import steps


@dataclass
class Usage:
    """Sums of texts, tokens and costs.

    `texts` were answered with a vector, `cached` of them by the cache; `generated` were embedded by a model, with
    `tokens` read, `truncated` cut off and `estimated` of those that were read guessed from characters; `cost` was paid,
    and `cost_avoided` not, as the cache knew the text or an equal one was being embedded. Both in US dollars.
    """

    texts: int = 0
    cached: int = 0
    generated: int = 0
    tokens: int = 0
    truncated: int = 0
    estimated: int = 0
    cost: float = 0.0
    cost_avoided: float = 0.0

    def add(self, other: "Usage") -> None:
        """Add the sums of another."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def since(self, before: "Usage") -> "Usage":
        """Return the usage since it was `before`."""
        return Usage(**{name: getattr(self, name) - getattr(before, name) for name in COUNTED})


COUNTED: tuple[str, ...] = tuple(one.name for one in fields(Usage))


@dataclass(frozen=True)
class UsageAccount:
    """The usage of one model by one tenant, in the hour that begins at `hour` (UTC)."""

    tenant: int
    model: str
    hour: datetime


class Ledger:
    """Usage in this process's memory, until it is taken to be kept."""

    def __init__(self) -> None:
        self._open: dict[UsageAccount, Usage] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def answered(self, tenant: int, model: str, texts: int, cached: int, cost_avoided: float) -> None:
        """Count texts that were answered, those of them that were cached, and the cost that was avoided."""
        usage = self._now(tenant, model)
        usage.texts += texts
        usage.cached += cached
        usage.cost_avoided += cost_avoided
        steps.avoided(model, cost_avoided)

    def generated(self, tenant: int, model: str, tokens: int, truncated: int, *, estimated: bool, cost: float) -> None:
        """Count one text that a model embedded; it is paid for, whether anybody still waits for it or not."""
        usage = self._now(tenant, model)
        usage.generated += 1
        usage.tokens += tokens
        usage.truncated += truncated
        usage.estimated += tokens if estimated else 0
        usage.cost += cost
        steps.paid(model, cost, tokens if estimated else 0)

    def take(self) -> dict[UsageAccount, Usage]:
        """Take all usage out of the ledger."""
        taken, self._open = self._open, {}
        return taken

    def put_back(self, taken: Mapping[UsageAccount, Usage]) -> None:
        """Put usage back that could not be kept."""
        for account, usage in taken.items():
            self._open.setdefault(account, Usage()).add(usage)

    def of(self, tenant: int) -> Iterator[tuple[UsageAccount, Usage]]:
        """Return the usage of one tenant."""
        return ((account, usage) for account, usage in list(self._open.items()) if account.tenant == tenant)

    def _now(self, tenant: int, model: str) -> Usage:
        account = UsageAccount(tenant, model, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
        usage = self._open.get(account)
        if usage is None:
            usage = self._open[account] = Usage()
        return usage


def cost_of(tokens: int, per_1k_tokens: float) -> float:
    """Return the US dollars for so many tokens."""
    return tokens * per_1k_tokens / 1000
