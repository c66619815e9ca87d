"""The plan of a search: what is ranked of which collection, under which filter, and how deep; and its explanation."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from likewise import filters
from likewise.db.collections import CollectionRow, Generation, ViewRow
from likewise.db.where import IndexedFields
from likewise.embedding.provider import Vector
from likewise.errors import Invalid
from likewise.filters import KEY, Field, Filter, both, field_named
from likewise.kind import Kind, Policy
from likewise.search.options import (
    MAX_HITS,
    MIN_RERANKED,
    ContentsQuestion,
    Mode,
    RecordQuestion,
    SearchOptions,
    SearchRequest,
    TextQuestion,
    TextsQuestion,
    VectorQuestion,
)

# The depth that fusion was measured with; deeper brings little.
DEPTH = 100
# The factor by which rankings go deeper each time that too few of theirs can be answered.
DEEPER = 10
# Texts or contents of one question: each has a vector to make or to read.
MAX_PARTS = 100
# A vector in half precision is this near to unit length.
UNIT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Leg:
    """One ranking of a search: of a view, by meaning or by words."""

    view: str
    by: Literal["meaning", "words"]


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A request read for the collection that answers it.

    Attributes:
        view: the view that is compared.
        mode: as asked for; a vector is ranked by meaning alone.
        tree: the filter, with what must hold beside it.
        indexed: the fields that indexes know.
        legs: the rankings that are fused.
        needs_vector: whether there is no answer without the meaning.
        total: hits that are needed for an answer, those passed over included.
        others: the plans of the views whose rankings are fused with this one's, by record.
        margin: contents of a ranking beyond those that are fused: one by which a page of a hundred knows of the next,
            and one for a record in question, which is left out afterwards. The same for every limit, so that pages of
            another size have the same order.
    """

    tenant: int
    collection: CollectionRow
    view: ViewRow
    request: SearchRequest
    mode: Mode
    tree: Filter | None
    group_by: Field | None
    indexed: IndexedFields
    legs: tuple[Leg, ...]
    needs_vector: bool
    total: int
    margin: int
    others: tuple["SearchPlan", ...] = ()

    @property
    def generation(self) -> Generation:
        """The generation whose vectors are ranked, of a view that has any."""
        assert self.view.generation is not None
        return self.view.generation

    @property
    def model(self) -> str:
        """The model that the search is answered with; empty where no vectors are embedded."""
        return "" if self.view.generation is None else self.view.generation.model

    @property
    def options(self) -> SearchOptions:
        """The options that were asked for."""
        return self.request.options

    @property
    def page_size(self) -> int:
        """Hits that there may be from the page's first on."""
        return self.total - self.request.offset

    @property
    def by_meaning(self) -> bool:
        """True if vectors are ranked."""
        return self.mode != "lexical"

    @property
    def by_words(self) -> bool:
        """True if words are ranked."""
        return any(leg.by == "words" for leg in self.legs)

    @property
    def uses_vector(self) -> bool:
        """True if the question's vector is of use."""
        return self.by_meaning or self.needs_vector

    @property
    def passes_over(self) -> bool:
        """True if some of the words' best may not be near enough in meaning to be hits."""
        return not self.by_meaning and self.options.threshold is not None

    def deeper(self, depth: int) -> int:
        """Return the depth of the rankings that follow those of `depth`; the first, after 0."""
        if not depth:
            return DEPTH + self.margin
        # By words alone a threshold may pass over any number: all are looked at, however old their count is.
        return max(depth * DEEPER, self.view.contents_total + 2 if self.passes_over else 0)


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


def plan_search(tenant: int, collection: CollectionRow, kind: Kind, request: SearchRequest) -> SearchPlan:
    """Return the plan of a request; Invalid for a wrong filter or field, or where what it needs is not kept."""
    options, policy = request.options, collection.policy
    tree = both(request.must, filters.parse(options.filters, kind.aliases, kind.within))
    group_by = group_field(options.group_by, kind.aliases, kind.within)
    view = collection.view(options.view)
    mode = _mode(request, view)
    _refuse_unkept(request, policy, view)
    of_texts = frozenset(kind.in_text)
    by_meaning = (Leg(view.name, "meaning"),) if mode != "lexical" else ()
    by_words = (Leg(view.name, "words"),) if mode != "dense" and view.terms else ()
    wanted = max(options.limit, MIN_RERANKED if options.rerank else 0)
    return SearchPlan(
        tenant=tenant,
        collection=collection,
        view=view,
        request=_fitting(request, view),
        mode=mode,
        tree=tree,
        group_by=group_by,
        indexed=IndexedFields(frozenset((*kind.indexed, *policy.indexed)) - of_texts, of_texts),
        legs=(*by_meaning, *by_words),
        needs_vector=mode == "dense" or options.threshold is not None,
        total=min(request.offset + wanted, MAX_HITS),
        margin=1 + isinstance(request.question, RecordQuestion),
        others=tuple(plan_search(tenant, collection, kind, one) for one in _in_other_views(request)),
    )


def explain(timings: Iterable[StepTiming]) -> dict[str, Any]:
    """Return the steps by name; one that was taken again adds up its time and keeps its last facts."""
    steps: dict[str, dict[str, Any]] = {}
    for timing in timings:
        step = steps.setdefault(timing.name, {"ms": 0.0})
        step.update(timing.facts)
        step["ms"] = round(step["ms"] + timing.ms, 2)
    return steps


def group_field(name: str | None, aliases: Mapping[str, str], within: str = "") -> Field | None:
    """Return the field that hits are grouped by; Invalid for a name that no field can have."""
    if name is None:
        return None
    if not KEY.match(name):
        raise Invalid.at("/group_by", f"A field's name matches {KEY.pattern[:-2]}.", "invalid_key")
    return field_named(name, aliases, within)


def needs_text() -> Invalid:
    """Return the error of a search that is to be reranked where no texts are kept."""
    return Invalid.at(
        "/rerank",
        "A reranker reads texts, and this collection keeps none (policy keep_text is false); search without rerank.",
        "rerank_needs_text",
    )


def _in_other_views(request: SearchRequest) -> list[SearchRequest]:
    """The request as it is asked in each view that is fused with its own; there it is only ranked."""
    options = request.options
    if not options.fused_with:
        return []
    names = (options.view, *options.fused_with)
    if len(set(names)) < len(names):
        raise Invalid.at("/fused_with", "A view is fused once.", "invalid_value")
    if options.group_by is not None or request.unit != "records":
        raise Invalid.at("/fused_with", "Views are fused by record; ask for records without groups.", "invalid_value")
    if isinstance(request.question, ContentsQuestion | VectorQuestion):
        raise Invalid.at("/fused_with", "Contents and vectors are of one view; ask by text or record.", "invalid_value")
    alone = replace(options, fused_with=(), threshold=None, rerank=False, explain=False)
    return [replace(request, options=replace(alone, view=name)) for name in options.fused_with]


def _mode(request: SearchRequest, view: ViewRow) -> Mode:
    """Return the rankings that there can be: a vector has no words, and a view may have no vectors."""
    asked = request.options.mode
    if view.generation is None:
        if asked == "dense" or request.options.threshold is not None:
            raise Invalid.at(
                "/view", "This view has no vectors; use mode lexical, without a threshold.", "invalid_value"
            )
        return "lexical"
    if view.generation.is_made and isinstance(request.question, TextQuestion | TextsQuestion):
        message = "The vectors of this view are made from records; ask by a record or a vector."
        raise Invalid.at("/view", message, "invalid_value")
    if not isinstance(request.question, VectorQuestion):
        return asked
    if asked == "lexical":
        raise Invalid.at("/mode", "A vector has no words; use mode dense.", "invalid_value")
    return "dense"


def _refuse_unkept(request: SearchRequest, policy: Policy, view: ViewRow) -> None:
    options = request.options
    if options.mode == "lexical" and policy.keep_terms and not view.terms:
        raise Invalid.at("/mode", "This view has no words; use mode dense.", "invalid_value")
    if options.rerank and request.offset:
        raise Invalid.at("/cursor", "What is reranked has one page; ask for a larger limit.", "rerank_one_page")
    if options.rerank and not policy.keep_text:
        raise needs_text()
    if options.rerank and (
        request.unit != "records" or isinstance(request.question, ContentsQuestion | VectorQuestion)
    ):
        raise Invalid.at("/rerank", "A reranker compares records with the text of a question.", "rerank_needs_text")
    if options.group_by is not None and request.unit != "records":
        raise Invalid.at("/group_by", "Contents have no fields to group by; ask for records.", "invalid_value")
    if options.mode == "lexical" and not policy.keep_terms:
        raise Invalid.at(
            "/mode",
            "This collection keeps no words (policy keep_terms is false); use mode dense.",
            "terms_not_kept",
        )


def _fitting(request: SearchRequest, view: ViewRow) -> SearchRequest:
    """The request, if this collection can be asked it; a vector is made exactly of unit length."""
    match request.question:
        case TextsQuestion(parts) | ContentsQuestion(parts) if not 1 <= len(parts) <= MAX_PARTS:
            raise Invalid.at("/question", f"A question has 1 to {MAX_PARTS} texts or contents.", "out_of_range")
        case VectorQuestion(vector) if view.generation is not None:
            unit = _unit_vector(np.asarray(vector, np.float32), view.generation.dimension)
            return replace(request, question=VectorQuestion(unit))
    return request


def _unit_vector(vector: Vector, dimension: int) -> Vector:
    if vector.shape != (dimension,):
        raise Invalid.at("/vector", f"A vector of this collection has {dimension} numbers.", "wrong_dimension")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not math.isfinite(length) or abs(length - 1) > UNIT_TOLERANCE:
        raise Invalid.at("/vector", "A vector has unit length; divide it by its norm.", "not_unit_length")
    unit: Vector = vector / np.float32(length)
    return unit
