"""The explanation of a search: its steps, each with its milliseconds and what it came to."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepTiming:
    """One step of a search: its name in an explanation, its duration, and facts without a word of the query."""

    name: str
    ms: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def since(cls, started: float, name: str, **facts: Any) -> "StepTiming":
        """Return the timing of a step that began at `started`, by `time.perf_counter`, and ends now."""
        return cls(name, (time.perf_counter() - started) * 1000, facts)


def explain(timings: Iterable[StepTiming]) -> dict[str, Any]:
    """Return the steps by name; one that was taken again adds up its time and keeps its last facts."""
    steps: dict[str, dict[str, Any]] = {}
    for timing in timings:
        step = steps.setdefault(timing.name, {"ms": 0.0})
        step.update(timing.facts)
        step["ms"] = round(step["ms"] + timing.ms, 2)
    return steps
