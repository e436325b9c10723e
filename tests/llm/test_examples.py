"""The examples with models' libraries run, and go on after kill -9."""

from __future__ import annotations

import asyncio
import json
import random
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.testing import Reader, Request, Transcript
from tests.llm.conftest import QUIET, Provider
from tests.support.server import ROOT, Server

pytestmark = pytest.mark.crash


def serve(app: str, directory: Path, provider: Provider, model: str) -> Server:
    env = {
        "PYTHONPATH": str(ROOT / "examples"), "OPENAI_BASE_URL": provider.url + "/v1",
        "OPENAI_API_KEY": "sk-secret", "MODEL": model, "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }  # fmt: skip
    return Server(app, directory, env=env, options=QUIET)


def opening(path: str) -> Request:
    body = json.dumps({"question": "Why tea?"}).encode()
    headers = {"content-type": "application/json", "idempotency-key": "one"}
    return Request("POST", path, body, headers)


async def killed_midway(server: Server, path: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        transcript = Transcript("the reader", control=True)
        reader = Reader(http, transcript, chance=random.Random(1), opening=opening(path))
        following = asyncio.create_task(reader.follow())
        async with asyncio.timeout(30):
            while len(transcript.seen) < 6:
                await asyncio.sleep(0.002)
            await asyncio.to_thread(server.restart)
            await following
        assert not transcript.violations
        return [json.loads(seen.data) for seen in transcript.standing() if seen.data]


@pytest.mark.parametrize(
    ("app", "path", "requests"),
    [("llm_chat:app", "/chat", 3), ("agent_pydantic_ai:app", "/ask", 4)],
)
def test_streams_survive_a_kill(
    app: str, path: str, requests: int, provider: Provider, tmp_path: Path
) -> None:
    with serve(app, tmp_path, provider, "m?n=25&pace=100") as server:
        found = asyncio.run(killed_midway(server, path))
    assert "".join(event.get("text", "") for event in found) == "".join(f"w{n} " for n in range(25))
    # The answer that was cut is asked for twice, nothing else is.
    assert len(provider.counted()) == requests


def test_an_approval_survives_a_kill(provider: Provider, tmp_path: Path) -> None:
    async def main(server: Server) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            request = opening("/ask")
            begun = await http.post(
                "/ask", content=request.body, headers={**request.headers, "prefer": "respond-async"}
            )
            run = begun.headers["location"]
            while not (waiting := (await http.get("/_durable/approvals")).json()["approvals"]):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(server.restart)
            name = waiting[0]["name"]
            said = await http.post(f"{run}/signals/{name}", json={"approved": True})
            assert said.is_success, said.text
            while (answer := await http.get(f"{run}/response")).status_code == 202:
                await asyncio.sleep(0.02)
            found: dict[str, Any] = answer.json()
            return found

    with serve("agent_approval:app", tmp_path, provider, "m?n=3") as server:
        assert asyncio.run(main(server)) == {"answer": "w0 w1 w2 "}
    assert len(provider.counted()) == 2


def test_a_tool_call_survives_a_kill(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)  # where the example would put its own store
    ask = import_module("mcp_tools").ask

    async def main(server: Server) -> str:
        waiting = asyncio.create_task(ask("tea", server.url + "/mcp"))
        async with asyncio.timeout(60):
            while "chapter 3" not in server.tail():
                await asyncio.sleep(0.02)
            await asyncio.to_thread(server.restart)
            found: str = await waiting
            return found

    with serve("mcp_tools:app", tmp_path, provider, "") as server:
        found = asyncio.run(main(server))
        printed = server.tail()
    assert len(found.splitlines()) == 8
    assert printed.count("chapter 1 of") == printed.count("chapter 2 of") == 1
    assert printed.count("published, once") == 1
