"""The models that the worker works with: those in service, and the others in turn."""

import asyncio
import time
from collections.abc import Collection, Sequence

from likewise.embedding.embedder import Embedder
from likewise.embedding.loading import PATIENCE_SECONDS
from likewise.errors import LikewiseError

# Of a model that another had to go for: many claims, as loading one takes a second, and a large one several.
TURN_SECONDS = 20.0
# A model that is away says so sooner; one that takes longer keeps the others from their work.
QUICK_SECONDS = 0.5


class ModelRotation:
    """Opens one model at a time for the texts that wait.

    Where models do not fit in memory together, each stays for a turn, or until nothing waits for it. They follow each
    other in the order of their names, so that each comes to its turn.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._one = asyncio.Lock()
        self._last = ""
        self._turn_of: str | None = None
        self._until = 0.0

    async def in_service(self, waiting: Collection[str]) -> list[str]:
        """Return the models that can be worked with now, after opening one of the others if it is time for that."""
        async with self._one:
            ready = self._ready(waiting)
            away = [model for model in waiting if model not in ready]
            if away and self._is_over(ready):
                await self._open_one(self._in_turn(away), ready)
                ready = self._ready(waiting)
            return ready

    def _ready(self, models: Collection[str]) -> list[str]:
        return [model for model in models if self._serves(model)]

    def _serves(self, model: str) -> bool:
        try:
            return self._embedder.is_ready(model)
        except LikewiseError:  # the settings do not allow it any more
            return False

    def _is_over(self, ready: Sequence[str]) -> bool:
        """Return whether the turn is over: by the clock, with the model's last text, or as another took its memory."""
        if not ready or time.monotonic() >= self._until:
            return True
        return self._turn_of is not None and self._turn_of not in ready

    def _in_turn(self, models: Collection[str]) -> list[str]:
        return sorted(models, key=lambda model: (model <= self._last, model))

    async def _open_one(self, models: Sequence[str], ready: Sequence[str]) -> None:
        """Open the first of the models that can be."""
        for model in models:
            self._last = model
            started = time.monotonic()
            try:
                await self._embedder.opened(model, patience=PATIENCE_SECONDS)
            except LikewiseError:
                if time.monotonic() - started < QUICK_SECONDS:
                    continue
                self._turn_of, self._until = None, time.monotonic() + TURN_SECONDS
            else:
                has_room = len(self._ready(ready)) == len(ready)  # nobody had to go, so the next may come at once
                self._turn_of, self._until = model, time.monotonic() + (0.0 if has_room else TURN_SECONDS)
            return
