"""Recent: what was learnt a moment ago, at most so much of it and each thing for so long."""

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key, each until a time of the monotonic clock; those learnt longest ago make room for others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: K) -> bool:
        return self.get(key) is not None

    def get(self, key: K) -> V | None:
        """The value, if it still counts."""
        value, until = self._known.get(key, (None, 0.0))
        return value if time.monotonic() < until else None

    def keep(self, key: K, value: V, until: float) -> None:
        """Remember it until then."""
        self._known[key] = (value, until)
        self._known.move_to_end(key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
