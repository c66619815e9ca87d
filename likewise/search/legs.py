"""One leg of a search: the contents that a single ranking gives, by meaning or by words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from likewise.search.explanation import StepTiming
from likewise.search.fusion import ScoredContent
from likewise.search.plan import Leg


@dataclass(frozen=True)
class LegRanking:
    """Contents and their scores by one leg, best first; `complete`: all that match were ranked."""

    leg: Leg
    scored: Sequence[ScoredContent]
    complete: bool
    timing: StepTiming

    def without(self, content: int | None) -> "LegRanking":
        """Return the ranking with one content left out."""
        if content is None:
            return self
        return replace(self, scored=[one for one in self.scored if one[0] != content])
