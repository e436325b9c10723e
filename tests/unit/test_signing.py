"""Where the secrets of approval links come from."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, MemoryStore, SQLiteStore, approval, durable
from durable_endpoints.asgi.signing import ENVIRONMENT, Signing
from durable_endpoints.clock import SystemClock
from durable_endpoints.errors import NotDurable
from durable_endpoints.links import BadLink, new_secret, sign

RUN = "01934f6e-7c1a-7000-8000-00000000002a"


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


class Shared:
    """A store of several nodes: it has no file, and it forgets nothing."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        if name in ("forgets", "path"):
            raise AttributeError(name)
        return getattr(self._store, name)


def signing(store: Any, *secrets: str) -> Signing:
    return Signing(secrets, store, SystemClock(), "/_durable")


def token_of(path: str) -> str:
    prefix, _, token = path.rpartition("/")
    assert prefix == "/_durable/approvals"
    return token


def test_a_secret_is_made_once_beside_the_database(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "durable.db")
    token = token_of(signing(store).path(RUN, "0", None))
    kept = tmp_path / "durable.db.secret"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert signing(store).verify(token).run_id == RUN  # of the next process
    assert [path.name for path in tmp_path.iterdir()] == ["durable.db.secret"]


@pytest.mark.parametrize("left", ["", "whsec_half"])
def test_a_crash_while_it_was_written_is_no_harm(tmp_path: Path, left: str) -> None:
    (tmp_path / "durable.db.secret.new").write_text(left)
    store = SQLiteStore(tmp_path / "durable.db")
    assert signing(store).verify(token_of(signing(store).path(RUN, "0", None))).wait == "0"


def test_a_store_that_forgets_needs_no_file() -> None:
    one = signing(MemoryStore())
    token = token_of(one.path(RUN, "0", None))
    assert one.verify(token).run_id == RUN
    with pytest.raises(BadLink):
        signing(MemoryStore()).verify(token)


def test_the_apps_own_secrets_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new, old = new_secret(), new_secret()
    store = SQLiteStore(tmp_path / "durable.db")
    by_old = token_of(signing(store, old).path(RUN, "0", None))
    monkeypatch.setenv(ENVIRONMENT, f"{new} {old}")
    assert signing(store).verify(by_old).run_id == RUN
    by_new = token_of(signing(store).path(RUN, "0", None))
    with pytest.raises(BadLink):
        signing(store, old).verify(by_new)
    assert not list(tmp_path.iterdir())


def test_a_malformed_secret_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="new_secret"):
        signing(MemoryStore(), "password")


def test_nodes_that_share_a_store_must_share_a_secret() -> None:
    with pytest.raises(NotDurable, match=ENVIRONMENT):
        signing(Shared()).path(RUN, "0", None)


def test_without_a_secret_the_routes_say_what_is_missing() -> None:
    @durable
    async def asks(request: Request) -> Response:
        return JSONResponse((await approval("refund")).approved)

    async def main() -> None:
        store: Any = Shared()
        app = Starlette(routes=[Route("/", asks, methods=["POST"])])
        middleware = DurableMiddleware(app, store=store, suspend_after=0)
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asked = asyncio.create_task(client.post("/"))
            while (listed := await client.get("/_durable/approvals")).status_code == 200:
                await asyncio.sleep(0.005)
            token = sign([b"x" * 32], RUN, "0", 2**33)
            looked = await client.get(f"/_durable/approvals/{token}")
            for answer in (listed, looked):
                assert answer.status_code == 503
                assert ENVIRONMENT in answer.json()["detail"]
            run_id = (await client.get("/_durable/runs")).json()["runs"][0]["id"]
            signal = f"/_durable/runs/{run_id}/signals/refund"
            assert (await client.post(signal, json={"approved": True})).status_code == 202
            assert (await asked).json() is True
        await middleware.engine.close()

    asyncio.run(main())
