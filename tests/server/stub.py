"""In-memory stand-in for the service; goes away."""
import sys, types, time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from likewise.errors import Conflict, NotFound, Fault
from likewise.kind import Policy

svc = types.ModuleType("likewise.apps.collections.service")
src = '''
from dataclasses import dataclass
from datetime import datetime
from typing import Any
@dataclass(frozen=True)
class CollectionView:
    name: str; kind: str; model: str; dimension: int; policy: object; created_at: datetime
@dataclass(frozen=True)
class RecordView:
    id: str; text: str|None; payload: dict; parent: object; status: object; occurred_at: object; created_at: datetime; updated_at: datetime; vector: str
@dataclass(frozen=True)
class WriteResult:
    created: int; changed: int; unchanged: int; failed: list
@dataclass(frozen=True)
class SearchRequest:
    query: Any; like: Any; limit: int=10; filters: Any=None; mode: str="hybrid"; threshold: float|None=None
@dataclass(frozen=True)
class Hit:
    id: str; score: float; similarity: float|None; lexical_score: float|None; found_by: tuple; record: RecordView
@dataclass(frozen=True)
class SearchResult:
    hits: list; model: str; took_ms: float; degraded: tuple
class CollectionsService: pass
'''
svc.__name__ = "likewise.apps.collections.service"
sys.modules[svc.__name__] = svc
exec(src, svc.__dict__)
lib = types.ModuleType("likewise.library")
class Likewise: pass
lib.Likewise = Likewise
sys.modules["likewise.library"] = lib

class Service(svc.CollectionsService):
    def __init__(self): self.c = {}; self.r = {}
    async def list(self, tenant, limit, after):
        return [self.c[n] for n in sorted(self.c) if after is None or n > after][:limit]
    async def create(self, tenant, name, model, policy):
        if name in self.c: raise Conflict("There is such a collection already.")
        self.c[name] = svc.CollectionView(name, "collections", model or "minilm-l6-v2", 384, policy or Policy(), datetime.now(UTC))
        self.r[name] = {}
        return self.c[name]
    async def get(self, tenant, name):
        if name not in self.c: raise NotFound("There is no such collection.")
        return self.c[name]
    async def drop(self, tenant, name):
        await self.get(tenant, name); del self.c[name]; del self.r[name]
    async def write(self, tenant, name, records, *, wait=False):
        await self.get(tenant, name)
        a = b = c = 0; failed = []
        for i, r in enumerate(records):
            if r.text == "REFUSE": failed.append(Fault(f"/{i}/text", "too_long", "too long")); continue
            if r.text == "BOOM": raise RuntimeError("secret text")
            old = self.r[name].get(r.id)
            if old is None: a += 1
            elif old.text == r.text and old.payload == r.payload: c += 1
            else: b += 1
            now = datetime.now(UTC)
            self.r[name][r.id] = svc.RecordView(r.id, r.text, dict(r.payload), r.parent, r.status, r.occurred_at, now, now, "waiting")
        return svc.WriteResult(a, b, c, failed)
    async def record(self, tenant, name, id):
        await self.get(tenant, name)
        if id not in self.r[name]: raise NotFound("There is no such record.")
        return self.r[name][id]
    async def delete(self, tenant, name, id):
        await self.record(tenant, name, id); del self.r[name][id]
    async def search(self, tenant, name, request):
        await self.get(tenant, name)
        if request.like: await self.record(tenant, name, request.like)
        hits = [svc.Hit(i, 1.0, .5, None, ("dense",), v) for i, v in self.r[name].items()][: request.limit]
        return svc.SearchResult(hits, "minilm-l6-v2", 1.0, ())
    async def stats(self, tenant, name):
        await self.get(tenant, name)
        n = len(self.r[name])
        return dict(records=n, contents=n, vectors=0, waiting=n, failed=0, model="minilm-l6-v2", dimension=384, index=None)

class StubLikewise(Likewise):
    def __init__(self): self.collections = Service()
    async def tenant(self): return 1
    async def health(self): return types.SimpleNamespace(database=None, schema=None, model=None)
