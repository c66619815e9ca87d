"""What the door costs: texts that the cache knows, many texts in a request, and many requests of one text.

    python -m benchmarks.serving [passages.jsonl.gz]

Each rate over HTTP stands beside the rate of the library, measured in turns with it; the last part also beside
sentence-transformers behind FastAPI, and beside infinity if INFINITY_EMB names its program (which wants an environment
of its own). Many requests at a time come from `wrk`, a compiled load generator that the system's packages bring.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.surroundings import (
    DATA,
    MODELS_FOLDER,
    Caller,
    fresh_server,
    lines,
    machine,
    peak_mib,
    slow_flushes,
)
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.models import Catalogue
from likewise.embedding.tokenizing import TextTokenizer
from likewise.settings import Settings, load_settings
from likewise.testing.redis import free_port

CACHED_TOKENS, SHORT_TOKENS = 100, 64
CACHED_TIMES, CACHED_ROUNDS = 2_000, 5
BATCH, BATCH_ROUNDS = 256, 7
SHORT_SECONDS = 10.0
CONNECTIONS, LOAD_SECONDS, LOAD_ROUNDS = 64, 8, 3
LIBRARY_TEXTS = 2_048
SECONDS_TO_START = 60.0

numbers = itertools.count(1)


def of_tokens(texts: Sequence[str], tokenizer: TextTokenizer, tokens: int) -> list[str]:
    """The texts' beginnings of about so many tokens with the special ones and a number, from those that are longer."""
    cut = []
    for text in texts:
        words = text.split()
        while words and tokenizer.lengths([" ".join(words)], "")[0] > tokens - 4:
            words.pop()
        if len(words) > tokens // 3 and len(words) < len(text.split()):
            cut.append(" ".join(words))
    return cut


def anew(texts: Sequence[str]) -> list[str]:
    """The same texts, which no cache knows."""
    return [f"{text} {next(numbers)}" for text in texts]


async def cached_in_process(settings: Settings, text: str) -> None:
    """One text that the memory knows, asked of the library."""
    embedder = Embedder(settings)
    await embedder.embed(1, [text])
    medians = []
    for _ in range(CACHED_ROUNDS):
        taken = []
        for _ in range(CACHED_TIMES):
            started = time.perf_counter()
            await embedder.embed(1, [text])
            taken.append(time.perf_counter() - started)
        medians.append(statistics.median(taken))
    print(f"cached        {statistics.median(medians) * 1e6:.0f} us in process")
    await embedder.close()


async def cached_over_http(text: str, *, slow: bool) -> None:
    """The same over one connection, with what the server says that it took."""
    async with fresh_server() as server:
        if slow:
            await slow_flushes(server)
        caller, body = Caller(server.url), orjson.dumps({"input": text, "encoding_format": "base64"})
        await caller.post("/v1/embeddings", body)
        before, taken = await seconds_in_server(server.url), []
        for _ in range(CACHED_TIMES):
            started = time.perf_counter()
            await caller.post("/v1/embeddings", body)
            taken.append(time.perf_counter() - started)
        after = await seconds_in_server(server.url)
        mean = (after[0] - before[0]) / (after[1] - before[1])
        taken.sort()
        p50, p99 = (taken[int(len(taken) * share)] * 1e3 for share in (0.5, 0.99))
        disk = ", flushes of 2 ms more" if slow else ""
        print(f"cached        over HTTP{disk}: p50 {p50:.2f} ms, p99 {p99:.2f} ms at the client;", end=" ")
        print(f"{mean * 1e3:.2f} ms of the server's")


async def seconds_in_server(url: str) -> tuple[float, float]:
    """Seconds that the requests to embed have taken in the server, and how many they were."""
    page = (await Caller(url).get("/metrics"))[1].decode()
    found = {}
    for line in page.splitlines():
        for name in ("sum", "count"):
            if line.startswith(f'likewise_http_request_seconds_{name}{{route="/v1/embeddings"}}'):
                found[name] = float(line.rpartition(" ")[2])
    return found.get("sum", 0.0), found.get("count", 0.0)


async def many_in_a_request(settings: Settings, passages: Sequence[str]) -> None:
    """256 texts in one request, in turns with the library."""
    embedder = Embedder(settings)
    ratios, rates = [], []
    async with fresh_server() as server:
        caller = Caller(server.url)
        for number in range(BATCH_ROUNDS + 1):
            texts = passages[number * BATCH : (number + 1) * BATCH]
            ours = await rate_of(embedder, anew(texts))
            body = orjson.dumps({"input": anew(texts), "encoding_format": "base64"})
            started = time.perf_counter()
            status, _ = await caller.post("/v1/embeddings", body)
            taken = time.perf_counter() - started
            if status != 200:
                raise SystemExit(f"The server answered {status}.")
            if number:  # the first one warms up
                ratios.append(BATCH / taken / ours)
                rates.append(ours)
    print(
        f"256 texts     in one request: {statistics.median(ratios):.2f} of the library's "
        f"{statistics.median(rates):.0f} texts/s (medians of {BATCH_ROUNDS} pairs)"
    )
    await embedder.close()


async def short_beside_long(passages: Sequence[str], short: Sequence[str]) -> None:
    """One text at a time, alone and while requests of 2,048 texts follow each other."""
    async with fresh_server() as server:
        one, many = Caller(server.url), Caller(server.url)
        await one.post("/v1/embeddings", orjson.dumps({"input": anew(passages[:BATCH])}))
        alone = await in_turn(one, short, SHORT_SECONDS)
        stop = asyncio.Event()

        async def long() -> None:
            texts = list(itertools.islice(itertools.cycle(passages), LIBRARY_TEXTS))
            while not stop.is_set():
                await many.post("/v1/embeddings", orjson.dumps({"input": anew(texts), "encoding_format": "base64"}))

        busy = asyncio.create_task(long())
        await asyncio.sleep(1)
        beside = await in_turn(one, short, SHORT_SECONDS)
        stop.set()
        await busy
    for name, taken in (("alone", alone), ("beside requests of 2,048", beside)):
        p50, p99 = (sorted(taken)[int(len(taken) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"one text      {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


async def in_turn(caller: Caller, texts: Sequence[str], seconds: float) -> list[float]:
    """Seconds that requests of one new text take, one after the other."""
    taken, end = [], time.perf_counter() + seconds
    for text in itertools.cycle(texts):
        started = time.perf_counter()
        if started > end:
            break
        await caller.post("/v1/embeddings", orjson.dumps({"input": anew([text])[0], "encoding_format": "base64"}))
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(0.01)
    return taken


async def rate_of(embedder: Embedder, texts: Sequence[str]) -> float:
    """Texts a second."""
    started = time.perf_counter()
    await embedder.embed(1, texts)
    return len(texts) / (time.perf_counter() - started)


async def many_requests(settings: Settings, texts: Sequence[str], model: Path) -> None:
    """64 connections with one text each, beside the library's rate and another server."""
    if shutil.which("wrk") is None:
        print("64 connections: not measured, as there is no `wrk`; the system's packages have it.")
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as bodies:
        bodies.write(b"\n".join(orjson.dumps({"input": f"{text} NUMBER"}) for text in texts))
        bodies.flush()
        shares = []
        for _ in range(LOAD_ROUNDS):
            library = await library_rate(settings, texts)
            async with fresh_server() as server:
                await load(server.url, bodies.name, seconds=2)
                ours = await load(server.url, bodies.name)
                memory = peak_mib(server.pid)
            shares.append(ours["requests"] / ours["seconds"] / library)
            print(
                f"64 x 1 text   {told(ours)}; {shares[-1]:.2f} of the library's {library:.0f} texts/s; {memory:.0f} MiB"
            )
            for name, command in others(model).items():
                async with serving(*command) as url:
                    await load(url, bodies.name, seconds=2)
                    theirs = await load(url, bodies.name)
                times = ours["requests"] / ours["seconds"] * theirs["seconds"] / theirs["requests"]
                print(f"              {name}: {told(theirs)}; ours {times:.1f}x")
    print(f"              median {statistics.median(shares):.2f} of the library's rate")


async def library_rate(settings: Settings, texts: Sequence[str]) -> float:
    """Texts a second of the library, in one call."""
    embedder = Embedder(settings)
    some = list(itertools.islice(itertools.cycle(texts), LIBRARY_TEXTS))
    await embedder.embed(1, anew(some[:BATCH]))
    rate = await rate_of(embedder, anew(some))
    await embedder.close()
    return rate


async def load(url: str, bodies: str, seconds: int = LOAD_SECONDS) -> dict[str, Any]:
    """What wrk saw: requests, seconds, p50 and p99 in milliseconds, failed."""
    script = Path(__file__).with_suffix(".lua")
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)),
        f"{url}/v1/embeddings",
        env={**os.environ, "BODIES": bodies, "SEED": str(next(numbers) * 1_000_000)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    result: dict[str, Any] = orjson.loads(out.decode().partition("RESULT ")[2])
    return result


def told(result: dict[str, Any]) -> str:
    """A load in words."""
    rate = result["requests"] / result["seconds"]
    failed = f", {result['failed']} failed" if result["failed"] else ""
    return f"{rate:.0f} requests/s, p50 {result['p50']:.0f} ms, p99 {result['p99']:.0f} ms{failed}"


def others(model: Path) -> dict[str, tuple[str, ...]]:
    """Commands that serve the same model, by what they are; each wants its port after it."""
    commands = {"sentence-transformers behind FastAPI": (sys.executable, "-m", "benchmarks.peer_server", str(model))}
    if "INFINITY_EMB" in os.environ:
        # Its faster mode for BERT needs a version of transformers of before.
        options = ("--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--url-prefix", "/v1")
        commands["infinity"] = (os.environ["INFINITY_EMB"], "v2", "--model-id", str(model), *options)
    return commands


@contextlib.asynccontextmanager
async def serving(*command: str) -> AsyncIterator[str]:
    """The address of another server, started for the block."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
    port = free_port()
    process = await asyncio.create_subprocess_exec(*command, "--port", str(port), env=environment, **quiet)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS_TO_START
    try:
        while True:
            with contextlib.suppress(OSError):
                if (await Caller(url).post("/v1/embeddings", b'{"input": "x"}'))[0] == 200:
                    break
            if time.monotonic() > end or process.returncode is not None:
                raise SystemExit("The other server did not start.")
            await asyncio.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def main(file: Path) -> None:
    """Measure and print."""
    settings = load_settings(models_dir=MODELS_FOLDER, data_dir=MODELS_FOLDER.parent, cache_bytes=256 * 2**20)
    spec = Catalogue(settings).resolve(None)
    model = weights.obtain(spec, settings)
    tokenizer = TextTokenizer(model / "tokenizer.json", spec.max_tokens, lowercase=False, vocabulary=30_522)
    passages = [one["text"] for one in lines(file)]
    print(machine())
    hundred = of_tokens(passages[:400], tokenizer, CACHED_TOKENS)[0]
    await cached_in_process(settings, hundred)
    for slow in (False, True):
        await cached_over_http(hundred, slow=slow)
    await many_in_a_request(settings, passages)
    short = of_tokens(passages, tokenizer, SHORT_TOKENS)[:2_000]
    await short_beside_long(passages, short)
    await many_requests(settings, short, model)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "throughput-passages" / "passages.jsonl.gz"))
