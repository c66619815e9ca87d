"""`likewise search` and `likewise similar`: find records by a query, or by one of them."""

from typing import Annotated

import typer

from likewise.apps.collections.service import SearchResult
from likewise.cli.opening import open_library
from likewise.cli.running import AsJson, CollectionOption, command_settings, in_loop
from likewise.cli.terminal import in_a_line, note, say, say_json, scores
from likewise.search.options import RecordQuestion, SearchOptions, SearchRequest, TextQuestion

LimitOption = Annotated[int, typer.Option("--limit", min=1, max=100, help="Most hits to show.")]
RerankOption = Annotated[
    bool, typer.Option("--rerank", help="Have the model of LIKEWISE_RERANKER put the hits in order.")
]


@in_loop
async def search(
    query: str,
    collection: CollectionOption,
    limit: LimitOption = 10,
    rerank: RerankOption = False,
    as_json: AsJson = False,
) -> None:
    await _search(collection, TextQuestion(query), SearchOptions(limit=limit, rerank=rerank), as_json=as_json)


@in_loop
async def similar(
    id: Annotated[str, typer.Argument(help="Id of a record.")],
    collection: CollectionOption,
    limit: LimitOption = 10,
    rerank: RerankOption = False,
    as_json: AsJson = False,
) -> None:
    await _search(collection, RecordQuestion(id), SearchOptions(limit=limit, rerank=rerank), as_json=as_json)


async def _search(
    collection: str, question: TextQuestion | RecordQuestion, options: SearchOptions, *, as_json: bool
) -> None:
    async with open_library(command_settings(), worker=False) as likewise:
        result = await likewise.collections.search(
            await likewise.tenant(), collection, SearchRequest(question, options)
        )
    if as_json:
        say_json(result)
    else:
        _print_hits(result)


def _print_hits(result: SearchResult) -> None:
    if "model" in result.degraded:
        note("The model is away: these are found by their words only.")
    note("score, cosine similarity, id" if result.hits else "Nothing was found.")
    for hit in result.hits:
        say(f"{scores(hit.score, hit.similarity)}  {in_a_line(hit.id)}")
        say(f"              {in_a_line(hit.record.text or '')}")
