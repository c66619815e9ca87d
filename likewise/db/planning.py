"""How Postgres is to go about a statement: its own choice is wrong for arrays of ids and for vectors."""

from dataclasses import dataclass, replace

from psycopg.sql import SQL

# What most searches want, so that their statements need no other.
USUAL_EF_SEARCH = 200
USUAL_MAX_SCANNED = 20_000

PLAN_SETTINGS = SQL("""
    set_config('enable_seqscan', %s, true), set_config('enable_indexscan', %s, true),
    set_config('enable_bitmapscan', %s, true), set_config('plan_cache_mode', %s, true),
    set_config('hnsw.ef_search', %s, true), set_config('hnsw.max_scan_tuples', %s, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true)
""")
SET_PLAN = SQL("SELECT {}").format(PLAN_SETTINGS)


@dataclass(frozen=True)
class Plan:
    """What the planner may choose for a statement, and how far an index of vectors is searched.

    Attributes:
        sequential: whether a scan of the whole table is one of the ways.
        indexed: whether rows may be fetched in the order of an index.
        bitmaps: whether indexes may be combined before rows are fetched.
        once: whether the plan is made without a look at the parameters: an array of 10,000 ids takes 2 ms to plan with.
        ef_search: vectors that a search of HNSW keeps in view (see pgvector); None if it was set or does not matter.
        max_scanned: vectors that it visits at most when a filter turns many away; None likewise.
    """

    sequential: bool = False
    indexed: bool = True
    bitmaps: bool = True
    once: bool = True
    ef_search: int | None = None
    max_scanned: int | None = None

    def after(self, other: "Plan | None") -> "Plan":
        """The plan with what it leaves open as it was before, or as is usual."""
        before = other or Plan(ef_search=USUAL_EF_SEARCH, max_scanned=USUAL_MAX_SCANNED)
        return replace(
            self,
            ef_search=before.ef_search if self.ef_search is None else self.ef_search,
            max_scanned=before.max_scanned if self.max_scanned is None else self.max_scanned,
        )

    def parameters(self) -> list[str]:
        """For PLAN_SETTINGS."""
        switches = ["on" if one else "off" for one in (self.sequential, self.indexed, self.bitmaps)]
        mode = "force_generic_plan" if self.once else "force_custom_plan"
        return [*switches, mode, str(self.ef_search), str(self.max_scanned)]


# For statements whose best plan depends on what is asked for.
BY_VALUES = Plan(once=False)
EVERY_ROW = Plan(sequential=True, indexed=False, bitmaps=False)
