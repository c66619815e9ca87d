"""The place that a request has among those that run at once."""

from typing import Protocol

from starlette.types import Scope

# Where a request's scope has its place.
PLACE = "likewise.place"


class Room(Protocol):
    """Counts the requests that run."""

    running: int


class Place:
    """One request's place: it counts while there is something to do, and not while its body is waited for."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.take()

    def take(self) -> None:
        """Count again, whether there is room or not: what is begun is done."""
        self._room.running += 1

    def leave(self) -> None:
        """Make room for another."""
        self._room.running -= 1


def place_of(scope: Scope) -> Place | None:
    """The place of a request; None of one that is never refused."""
    found: Place | None = scope.get(PLACE)
    return found
