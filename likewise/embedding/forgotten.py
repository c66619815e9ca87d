"""Texts that were forgotten while somebody embedded them, and must not be remembered again by that."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Beyond so many nothing that began before is remembered: 20 MB.
MOST = 100_000


@dataclass(frozen=True)
class Since:
    """A moment; what is forgotten from then on is not to be remembered by who began then."""

    moment: int


class Forgotten:
    """Who embeds says when it begins and ends; what is forgotten is kept here until all have ended that had begun.

    So nothing is kept while nobody embeds, and a text that is sent again after it was forgotten is remembered again.
    """

    def __init__(self) -> None:
        self._now = 0
        self._began: dict[int, Since] = {}
        # By owner and digest, the oldest first.
        self._moments: OrderedDict[tuple[int | None, bytes], int] = OrderedDict()
        self._all = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[Since]:
        """What is forgotten while the block runs is known in it."""
        self._now += 1
        since = self._began[self._now] = Since(self._now)
        try:
            yield since
        finally:
            del self._began[since.moment]
            self._trim()

    def add(self, owner: int | None, digests: Sequence[bytes]) -> None:
        """Texts are forgotten from now on."""
        if not self._began:
            return
        self._now += 1
        for digest in digests:
            self._moments[owner, digest] = self._now
            self._moments.move_to_end((owner, digest))
        if len(self._moments) > MOST:
            self.add_all()

    def add_all(self) -> None:
        """Whatever there is, is."""
        self._now += 1
        self._all = self._now
        self._moments.clear()

    def among(self, owner: int | None, digests: Iterable[bytes], since: Since) -> set[bytes]:
        """Those of the digests that were forgotten since then."""
        if self._all > since.moment:
            return set(digests)
        if not self._moments:
            return set()
        return {one for one in digests if self._moments.get((owner, one), 0) > since.moment}

    def _trim(self) -> None:
        """Those from before all began who embed now concern nobody."""
        earliest = next(iter(self._began), self._now + 1)
        while self._moments:
            key = next(iter(self._moments))
            if self._moments[key] > earliest:
                return
            del self._moments[key]
