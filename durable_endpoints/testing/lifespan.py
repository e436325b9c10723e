"""Starting an app up without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message


@asynccontextmanager
async def lifespan(inner: ASGIApp, app: Any) -> AsyncIterator[dict[str, Any]]:
    """Run an app's start-up, give the state that it left for requests, then its shutdown.

    `inner` is asked; `app` is what it finds as its scope's app. An app without a lifespan is
    taken as started.

    Raises: RuntimeError with the app's message if its start-up failed.
    """
    loop = asyncio.get_running_loop()
    state: dict[str, Any] = {}
    messages: asyncio.Queue[Message] = asyncio.Queue()
    started: asyncio.Future[str | None] = loop.create_future()

    async def send(message: Message) -> None:
        if message["type"].startswith("lifespan.startup.") and not started.done():
            failed = message["type"].endswith("failed")
            lines = message.get("message", "").strip().splitlines() or ["it gave no reason"]
            started.set_result(lines[-1] if failed else None)  # of a traceback

    async def run() -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "app": app, "state": state}
        try:
            await inner(scope, messages.get, send)
        except Exception as error:
            if not started.done():
                # The ASGI specification: an app that raises here knows no lifespan.
                started.set_result(f"{error!r}" if _knows_lifespan(inner) else None)
            elif started.result() is None:
                raise
        finally:
            if not started.done():
                started.set_result(None)

    messages.put_nowait({"type": "lifespan.startup"})
    task = loop.create_task(run())
    failure = await started
    if failure is not None:
        await task
        raise RuntimeError(f"the app did not start up: {failure}")
    try:
        yield state
    finally:
        messages.put_nowait({"type": "lifespan.shutdown"})
        await task


def _knows_lifespan(app: Any) -> bool:
    """Say whether a Starlette router is behind an app: it reports its failures itself."""
    while app is not None:
        if hasattr(app, "lifespan_context"):
            return True
        app = getattr(app, "app", None)
    return False
