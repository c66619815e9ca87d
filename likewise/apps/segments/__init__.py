"""Document segments of many tenants: embedded by jobs, no text kept, searched by meaning.

Over HTTP in `routes`, at `/vectors`; for programs `lw.segments`, which takes these.
"""

from likewise.apps.segments.documents import NewSegment
from likewise.apps.segments.service import SegmentQuery, SegmentsService

__all__ = ["NewSegment", "SegmentQuery", "SegmentsService"]
