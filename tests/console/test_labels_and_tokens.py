"""`durable runs --label` and `durable show` against a real server; the nodes on the health page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx
from click.testing import CliRunner
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, current_run, durable
from durable_endpoints.cli.commands import cli
from durable_endpoints.stores.postgres import PostgresStore
from durable_endpoints.testing.replaying import middleware_of
from tests.console.runs import ended
from tests.support.server import Server


def said(server: Server, *arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments, "--url", server.url])
    return result.output


def test_runs_are_found_by_their_labels(client: httpx.Client, server: Server) -> None:
    mine = ended(client, "/labelled", json={"tenant": "command", "evil": "\u202eesrever"})
    other = ended(client, "/labelled", json={"tenant": "elsewhere"})
    shown = said(server, "runs", "--label", "tenant:command")
    assert mine in shown
    assert "tenant:command" in shown
    assert other not in shown
    assert "\u202e" not in shown
    found = said(server, "runs", "-l", "tenant:command", "-l", "evil:\u202eesrever", "--json")
    assert json.loads(found)["labels"]["tenant"] == "command"
    assert said(server, "runs", "-l", "tenant:nobody") == "No such runs.\n"
    assert "give a label as name:value" in said(server, "runs", "-l", "tenant")
    assert "tenant:command" in said(server, "show", mine)


def test_show_says_what_model_calls_used(client: httpx.Client, server: Server) -> None:
    run_id = ended(client, "/models", json=["tiny-1", "other", "silent"])
    shown = said(server, "show", run_id)
    for part in ("tiny-1", "1,200", "345", "0.005850", "no price", "1 answers said nothing"):
        assert part in shown, shown
    assert json.loads(said(server, "show", run_id, "--json"))["usage"]["total"]["input"] == 2400
    assert "of it cached" not in said(server, "show", ended(client, "/ask"))


async def page(app: FastAPI, path: str) -> str:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return (await client.get(path)).raise_for_status().text


def test_the_nodes_and_their_leases(postgres: Callable[[], str]) -> None:
    address = postgres()
    app = FastAPI()
    app.add_middleware(DurableMiddleware, store=address)

    @app.post("/labelled")
    @durable
    async def labelled() -> dict[str, str]:
        current_run().label(tenant="acme")
        return dict(current_run().labels)

    async def main() -> None:
        other = PostgresStore(address)
        await other.open()
        shown = await page(app, "/_durable/console/health")
        mine = middleware_of(app).engine.store
        assert isinstance(mine, PostgresStore)
        for node in (mine.node, other.node):
            assert f"<code>{node}</code>" in shown
        assert shown.count("this one") == 1
        assert shown.count(" left</td>") == 2
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            run_id = (await client.post("/labelled")).headers["durable-run-id"]
        assert f'id="r-{run_id}"' in await page(app, "/_durable/?label=tenant:acme")
        metrics = await page(app, "/_durable/metrics")
        assert 'durable_runs_stored{status="suspended"} 0' in metrics
        await middleware_of(app).engine.close()
        await other.close()

    asyncio.run(main())
