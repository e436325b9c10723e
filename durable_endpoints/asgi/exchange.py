"""One request: passed through untouched, or promoted to a run while the inner app handles it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from durable_endpoints.asgi.capture import ResponseCapture
from durable_endpoints.asgi.opening import Attached, Opening
from durable_endpoints.asgi.problems import Problem, as_problem, without_response
from durable_endpoints.asgi.replies import send_accepted, send_whole
from durable_endpoints.asgi.request import header
from durable_endpoints.asgi.tail import Tail, own_headers
from durable_endpoints.engine.endings import conclude
from durable_endpoints.engine.endpoints import ADMISSION, EndpointSpec
from durable_endpoints.engine.life import Life
from durable_endpoints.engine.outcomes import is_cancellation
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.engine.scope import Scope as RunScope
from durable_endpoints.errors import ControlSignal, DurableError, Fenced, StoreError, StreamAborted
from durable_endpoints.limits import BODY_BYTES_MAX
from durable_endpoints.stores.protocol import PATIENCE_S

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from durable_endpoints.asgi.host import Host

_RESPOND_ASYNC: Final = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", re.IGNORECASE)
logger = logging.getLogger("durable_endpoints")
Message = MutableMapping[str, Any]


class Halted(ControlSignal):
    """Unwinds the inner app: its request is answered in another way."""


class Exchange:
    """Stands between the server and the inner app for one request."""

    def __init__(self, host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        self.run: LiveRun | None = None
        self.tail: Tail | None = None
        self._host = host
        self._scope = scope
        self._origin = dict(scope)  # mounts change the scope as it goes in
        self._receive = receive
        self._send = send
        self._held: Message | None = None  # a response head that may yet become a run's
        self._passed = False
        self._problem: Problem | None = None
        self._attached: LiveRun | None = None
        self._async_reply = False
        self._capture: ResponseCapture | None = None
        self._messages: list[Message] = []
        self._served = 0
        self._life = Life()
        self._size = 0
        self._reading = asyncio.Lock()
        self._complete = False
        self._app_done = False
        self._checking = False
        self._sender: asyncio.Task[None] | None = None

    @property
    def host(self) -> Host:
        """What all requests of the middleware share."""
        return self._host

    async def handle(self, app: ASGIApp, pattern: EndpointSpec | None = None) -> None:
        """Run the inner app, and send what becomes of the request."""
        admission = ADMISSION.set(self)
        outer = SCOPE.set(None)
        error: BaseException | None = None
        try:
            if pattern is not None:
                # What a journal does not hold must not be offered.
                self._scope.get("extensions", {}).pop("http.response.trailers", None)
                await self.promote(pattern, pattern=True)
            await app(self._scope, self.receive, self.send)
        except BaseException as raised:  # noqa: BLE001 - told apart and raised again below
            error = raised
        finally:
            SCOPE.reset(outer)
            ADMISSION.reset(admission)
            self._app_done = True
        if self._problem is not None:
            await self._problem.answer(self._send)
        elif self._attached is not None:
            if self._prefers_async():
                await send_accepted(self._send, self._attached, self._prefix())
            else:
                await self._follow(self._attached)
        elif self.run is None:
            if self._held is not None:
                await self._send(self._held)
            if error is not None:
                raise error
        else:
            await self._finish(self.run, error)

    # --- the inner app's side

    async def receive(self) -> Message:
        """Give the inner app its request, and withhold the disconnect once there is a run."""
        if self._capture is not None and self._capture.ended:
            return {"type": "http.disconnect"}
        if self._served < len(self._messages):
            self._served += 1
            return self._messages[self._served - 1]
        if self.run is None and self._attached is None:
            async with self._reading:
                if self._served < len(self._messages):
                    self._served += 1
                    return self._messages[self._served - 1]
                message = await self._receive()
                self._keep(message)
            if message["type"] == "http.request" or self.run is None:
                return message
        # Disconnect is not cancel: the run goes on without its first reader.
        if self._capture is not None:
            await self._capture.complete()
        return {"type": "http.disconnect"}

    def _keep(self, message: Message) -> None:
        """Keep a request message for the journal, while it fits."""
        if message["type"] != "http.request":
            return
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size <= BODY_BYTES_MAX:
            self._messages.append(message)
            self._served += 1
        else:
            self._messages.clear()
            self._served = 0

    async def send(self, message: Message) -> None:
        """Take what the inner app sends."""
        capture = self._capture
        if capture is not None:
            if self._sender is None or not capture.takes_now(message):
                await self._capture_message(capture, message)
            return
        if self._problem is not None or self._attached is not None:
            return
        if message["type"] == "http.response.start" and self._awaits_promotion():
            self._held = message
            return
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)
        self._passed = True
        await self._send(message)

    def _awaits_promotion(self) -> bool:
        """Say whether a generator endpoint is about to run: it becomes a run at its first item."""
        return hasattr(self._scope.get("endpoint"), "durable_endpoint")

    async def _capture_message(self, capture: ResponseCapture, message: Message) -> None:
        if message["type"] == "http.response.debug":
            await self._send(message)  # for test clients: no output, and of this process only
            return
        await capture.take(message)
        if self._sender is None and not self._async_reply and capture.began:
            if not capture.ended and message["type"] == "http.response.body":
                self._start_tail()
            elif not self._checking:
                # The usual app is done in this turn; a slow one, or its background tasks, linger.
                self._checking = True
                asyncio.get_running_loop().call_soon(self._start_tail_if_lingering)

    def _start_tail_if_lingering(self) -> None:
        if not self._app_done and self._sender is None:
            self._start_tail()

    def _start_tail(self) -> None:
        assert self.run is not None
        context = self._host.clean_context()
        follow = self._follow(self.run)
        self._sender = asyncio.get_running_loop().create_task(follow, context=context)

    # --- promotion

    async def promote(
        self, spec: EndpointSpec, *, concurrency_key: str | None = None, pattern: bool = False
    ) -> None:
        """Make the request a run; see `Admission.promote`."""
        if self.run is not None:
            return
        if self._passed:
            raise DurableError(
                f"{spec.name}: the response had begun before @durable was reached; put @durable "
                "on the endpoint itself, right below the route decorator"
            )
        try:
            await self._host.ensure_open()
            body = await self._whole_body()
            opening = Opening(
                self._host, spec, self._scope, self._origin, body, pattern, concurrency_key
            )
            run = await opening.open()
        except Problem as problem:
            self._halt(problem)
        except StoreError as error:
            self._halt(as_problem(error))
        except Attached as found:
            self._attached = found.run
            raise Halted(found.run.id) from None
        self._enter(run)
        if concurrency_key is not None and spec.on_conflict == "queue":
            await self._host.engine.conflicts.take_turn(run)

    def _enter(self, run: LiveRun) -> None:
        """Let the rest of the app's work belong to the run."""
        self.run = run
        self._life = run.life
        run.task = asyncio.current_task() if run.task is None else run.task
        run.early = []
        SCOPE.set(RunScope(run))
        PATIENCE_S.set(None)  # from here on it is the run that asks
        self._capture = ResponseCapture(run)
        if self._prefers_async():
            self._async_reply = True
            self._sender = self._host.spawn(send_accepted(self._send, run, self._prefix()))
        if self._held is not None:
            held, self._held = self._held, None
            self._capture.start(held)

    async def _whole_body(self) -> bytes:
        """Return the whole request body, reading what the app has not read yet."""
        announced = header(self._scope, b"content-length")
        if announced is not None and announced.isdecimal():
            self._size = max(self._size, int(announced) if int(announced) > BODY_BYTES_MAX else 0)
        while self._incomplete():
            async with self._reading:  # a listener for the disconnect may be reading too
                if not self._incomplete():
                    break
                message = await self._receive()
                served = self._served
                self._keep(message)
                self._served = min(served, self._served)  # the app has yet to get it
            if message["type"] != "http.request":
                detail = "the client left before its request was whole"
                raise Problem(400, "incomplete-request", detail)
        if self._size > BODY_BYTES_MAX:
            detail = f"a durable request has at most {BODY_BYTES_MAX:,} bytes"
            raise Problem(413, "body-too-large", detail)
        return b"".join(message.get("body", b"") for message in self._messages)

    def _incomplete(self) -> bool:
        return not self._complete and self._size <= BODY_BYTES_MAX

    def _halt(self, problem: Problem) -> NoReturn:
        self._problem = problem
        raise Halted(problem.kind)

    # --- the end

    async def _finish(self, run: LiveRun, error: BaseException | None) -> None:
        """End the run by what became of the app, and see the first reader through."""
        complete = self._capture is not None and self._capture.ended
        ours = run.fenced is not None or run.cancellation.asked or run.error is not None
        if not run.resting and not self._life.over:
            try:
                leaving = self._host.engine.leaving
                await conclude(run, error, complete=complete, leaving=leaving)
            except BaseException as raised:  # noqa: BLE001 - told to stop while it is undone
                error, ours = raised, run.fenced is not None or self._life.over
                if not ours:  # by somebody outside: it is taken up again, as it is before its end
                    run.task = None
                    run.fence("its end was cut short", keep=True)
        if run.resting or self._life.over:
            await self._outlive(run, error)
            return
        task, run.task = asyncio.current_task(), None  # nobody cancels this task for the run now
        try:
            if error is not None and is_cancellation(error):
                if not ours:
                    raise error
                if task is not None and isinstance(error, asyncio.CancelledError):
                    task.uncancel()
                error = None
            await self._deliver(run, error)
        except StreamAborted as aborted:
            if error is not None:
                raise error from aborted
            raise
        finally:
            self._let_go(run)
        if error is None:
            return
        if self._async_reply:  # the answer is out, and the connection may serve another request
            logger.error("run %s failed", run.id, exc_info=error)
            return
        raise error

    def _let_go(self, run: LiveRun) -> None:
        if self._sender is not None:
            self._sender.cancel()
        if run.durable_seq < run.seq - 1:
            self._host.spawn(self._forget_written(run))  # a request that was cut waits for nothing
        elif not self._life.over:
            self._host.engine.forget(run)

    async def _forget_written(self, run: LiveRun) -> None:
        await run.log.flush()
        if not self._life.over:
            self._host.engine.forget(run)

    async def _outlive(self, run: LiveRun, error: BaseException | None) -> None:
        """See the first reader through a run that was suspended: the app is gone, it goes on."""
        task = asyncio.current_task()
        if run.task is task:
            run.task = None
        if task is not None and isinstance(error, asyncio.CancelledError):
            task.uncancel()
        if self._sender is None:
            await self._follow(run)
        else:
            await self._deliver(run, None)

    async def _deliver(self, run: LiveRun, error: BaseException | None) -> None:
        """Wait until the first reader has everything."""
        try:
            await self._deliver_durable(run, error)
        except Fenced as reason:  # nothing was sent, and nothing of it will be durable here
            text = str(reason)
            await self._tell(run, Problem(503, "interrupted", text, [("retry-after", "1")]))

    async def _deliver_durable(self, run: LiveRun, error: BaseException | None) -> None:
        if self._sender is not None:
            await asyncio.wait([self._sender])
            raised = None if self._sender.cancelled() else self._sender.exception()
            quiet = isinstance(raised, OSError) or self._async_reply
            if raised is not None and (not quiet or isinstance(raised, Fenced)):
                raise raised
        elif self._capture is not None and self._capture.began:
            if not await send_whole(self._send, run, self._capture, self._prefix()):
                await self._follow(run)
        elif run.fenced is not None:
            reason = run.fenced
            await self._tell(run, Problem(503, "interrupted", reason, [("retry-after", "1")]))
        else:
            await run.durable(run.terminal_seq)
            if run.record.status == "cancelled":
                await self._tell(run, Problem(409, "run-cancelled", "the run was cancelled"))
            elif error is None:
                detail = run.record.error or "the app sent no response"
                await self._tell(run, Problem(500, "run-failed", detail))

    async def _tell(self, run: LiveRun, problem: Problem) -> None:
        """Answer with a problem, and say of which run it is, if there is one for good (I1)."""
        known = run.durable_seq >= 0
        await problem.answer(self._send, own_headers(run.id, self._prefix()) if known else ())

    def _prefers_async(self) -> bool:
        return _RESPOND_ASYNC.search(header(self._scope, b"prefer") or "") is not None

    def _prefix(self) -> str:
        return self._host.prefix_of(self._origin)

    async def _follow(self, run: LiveRun) -> None:
        """Send the run's events to this request's client, until the end or until it is gone."""
        secrets = self._capture.secrets if self._capture is not None else ()
        self.tail = Tail(
            self._host.engine.store, run, self._send, prefix=self._prefix(),
            rewinds=self._host.wants_control(self._scope), secrets=secrets,
        )  # fmt: skip
        try:
            await self.tail.follow()
        except OSError:
            return  # the client is gone; the run is not
        except StreamAborted as aborted:
            if self.tail.began:
                raise
            problem = Problem(503, "interrupted", str(aborted), [("retry-after", "1")])
            if run.ended:
                problem = without_response(run.record, full=False)
            await self._tell(run, problem)
