"""A recovered request: the whole inner app runs again, over the journal and without a client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from durable_endpoints.asgi.capture import ResponseCapture
from durable_endpoints.engine.endings import conclude
from durable_endpoints.engine.endpoints import ADMISSION, EndpointSpec
from durable_endpoints.engine.outcomes import is_cancellation
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.engine.scope import Scope as RunScope
from durable_endpoints.journal import Journal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

logger = logging.getLogger("durable_endpoints")
_REFUSED: Final = (401, 403)


class ReplayedExchange:
    """Stands where `Exchange` stands, for a run that a crash has cut."""

    def __init__(
        self, run: LiveRun, journal: Journal, scope: Scope, body: bytes,
        leaving: Callable[[], bool], take_turn: Callable[[LiveRun], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._run = run
        self._journal = journal
        self._leaving = leaving
        self._take_turn = take_turn
        self._scope = scope
        self._body: bytes | None = body
        self._capture: ResponseCapture | None = None
        self._held: MutableMapping[str, Any] | None = None
        self._status = 0

    async def handle(self, app: ASGIApp, pattern: EndpointSpec | None = None) -> None:
        """Run the inner app to the run's end."""
        run = self._run
        life = run.life
        ADMISSION.set(self)
        SCOPE.set(None)
        error: BaseException | None = None
        try:
            if pattern is not None:
                await self.promote(pattern)
            await app(self._scope, self.receive, self.send)
        except BaseException as raised:  # noqa: BLE001 - its fate is the run's
            error = raised
        finally:
            SCOPE.set(None)
        if run.resting or run.life is not life:
            return  # suspended: it is begun anew when it is woken
        if self._capture is None and run.fenced is None and not run.cancellation.asked:
            self._park_unreached(error)
        else:
            complete = self._capture is not None and self._capture.ended
            await conclude(run, error, complete=complete, leaving=self._leaving())
            if run.life is not life or run.resting:
                return
        if error is not None and not is_cancellation(error):
            logger.error("run %s failed", run.id, exc_info=error)
        run.task = None

    def _park_unreached(self, error: BaseException | None) -> None:
        """Set the run aside: the request no longer gets to its durable endpoint."""
        if error is not None and is_cancellation(error):
            self._run.fence("the server cancelled the recovery")
            return
        why = f"raised {error!r}" if error is not None else f"answered {self._status}"
        reason = f"the request no longer reaches its durable endpoint: the app {why}"
        if self._status in _REFUSED:
            reason += (
                ". Credentials are never stored; give the middleware restore_headers= so that a "
                "recovered request can prove who it is for"
            )
        self._run.diverge(reason)

    async def receive(self) -> MutableMapping[str, Any]:
        """Give the inner app its request once, and never a disconnect."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._capture is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._capture.complete()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Take what the inner app sends."""
        if self._capture is not None:
            await self._capture.take(message)
        elif message["type"] == "http.response.start":
            self._status = message["status"]
            self._held = message

    async def promote(self, spec: EndpointSpec, *, concurrency_key: str | None = None) -> None:
        """Begin the replay; see `Admission.promote`."""
        run = self._run
        if self._capture is not None:
            return
        if spec.version != run.record.version:
            raise run.diverge(
                f"the run began with version {run.record.version!r} of {spec.name}, the code is "
                f"version {spec.version!r}"
            )
        run.task = asyncio.current_task() if run.task is None else run.task
        run.early = []
        run.begin_replay(self._journal)
        self._capture = ResponseCapture(run)
        SCOPE.set(RunScope(run))
        if self._held is not None:
            self._capture.start(self._held)
        if concurrency_key is not None and spec.on_conflict == "queue":
            await self._take_turn(run)
