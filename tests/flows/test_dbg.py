import asyncio, random, pytest, psycopg
from tests.flows.test_races import text
pytestmark = []
@pytest.mark.parametrize("seed", range(16))
async def test_dbg(lw, database, seed):
    notes = lw.collection("notes")
    await notes.create()
    chance = random.Random(seed)
    async def one(n):
        match n % 4:
            case 0: await notes.add([{"id": f"{n} {m}", "text": f"{text(chance)} {n}"} for m in range(20)])
            case 1: await notes.add([{"id": f"{n} {m}", "text": f"{text(chance)} {n}"} for m in range(20)], wait=False)
            case 2: await notes.search("pump", limit=20)
            case _: await notes.add([{"id": "hot", "text": text(chance)}])
    async def leave(n):
        task = asyncio.create_task(one(n))
        await asyncio.sleep(chance.uniform(0, 0.06))
        task.cancel()
        try: await task
        except asyncio.CancelledError: pass
    async def watch():
        while True:
            await asyncio.sleep(2)
            pool = lw.runtime.pool._pool
            print(pool.get_stats(), pool._nconns, len(pool._pool), pool._growing)
            async with await psycopg.AsyncConnection.connect(database.owner) as c:
                for r in await (await c.execute("select pid, state, wait_event_type, wait_event, left(query,80) , now()-xact_start from pg_stat_activity where datname=current_database()")).fetchall(): print("   ", r)
    w = asyncio.create_task(watch())
    try:
      async with asyncio.timeout(9):
        for start in range(0, 180, 6):
            await asyncio.gather(*(leave(n) for n in range(start, start + 6)))
        await lw.wait_until_embedded("notes")
    except TimeoutError:
        for t in asyncio.all_tasks(): t.print_stack()
        raise
    finally: w.cancel()
