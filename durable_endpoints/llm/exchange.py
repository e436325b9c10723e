"""One request of a run: a step for the answer's head, and a stream step for its body.

A body that means nothing before it is whole (JSON, every error) is recorded with its head.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import httpx

from durable_endpoints.engine.attempts import run_attempts
from durable_endpoints.engine.scope import Scope
from durable_endpoints.engine.steps import StepSpec, run_step
from durable_endpoints.engine.streams import Last, run_stream
from durable_endpoints.hints import delay_hint
from durable_endpoints.limits import RESULT_BYTES_MAX
from durable_endpoints.llm import genai
from durable_endpoints.llm.answers import (
    BODY_SUFFIX,
    Answer,
    AnswerCodec,
    BytesCodec,
    Unanswered,
    answer_of,
    arguments_of,
    extensions_of,
    header,
    is_plain_events,
    name_of,
    secret_headers,
)
from durable_endpoints.llm.body import Body, once
from durable_endpoints.llm.library import library_of, response_of, with_header
from durable_endpoints.llm.policy import Policy
from durable_endpoints.llm.resume import Progress, is_resumable
from durable_endpoints.llm.upstream import Ending, Upstream, pieces_of
from durable_endpoints.llm.usage import Meter, of_run

Source = Callable[..., AsyncGenerator[bytes | Last[bytes], None]]
Send = Callable[[httpx.Request], Awaitable[httpx.Response]]
# Waits before an answer that broke off is asked for again, in seconds.
_AGAIN_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
# What a provider asks to wait is kept up to this: a reader is waiting.
_HINT_S_MAX: Final = 60.0
_SAID_BYTES: Final = 500
# How long the last event is held for the end of its stream, which is recorded with it.
_END_S: Final = 0.05
_JSON: Final = ("application/json", "application/problem+json")


class Exchange:
    """One request, as it is made or as it is recorded."""

    def __init__(self, scope: Scope, request: httpx.Request, send: Send, policy: Policy) -> None:
        self._scope = scope
        self._send = send
        self._policy = policy
        # Both now: the body may be read later, or by another task.
        self._head_call, self._body_call = scope.next_call(), scope.next_call()
        self._name = name_of(request)
        self._resumable = policy.on_interrupt in ("auto", "resume") and is_resumable(request)
        self._on_interrupt = "resume" if self._resumable else policy.on_interrupt
        self._request = request
        observed = scope.run.log.observer is not None
        self._about = genai.about(request) if observed else None
        self._upstream: Upstream | None = None
        self._live: httpx.Response | None = None
        self._answer: Answer | None = None

    async def response(self) -> httpx.Response:
        """Return the response: recorded, or new."""
        policy = self._policy
        spec = StepSpec(
            self._name, AnswerCodec(self._name), retry=policy.retry, rate_limit=policy.rate_limit,
            about=self._about,
        )  # fmt: skip
        run = run_attempts if spec.staged else run_step
        try:
            answer: Answer = await run(
                self._scope, self._head_call, spec, self._begin, arguments_of(self._request), {}
            )
        except Unanswered as refusal:
            answer = refusal.answer
            answer = answer._replace(headers=(*answer.headers, ("x-should-retry", "false")))
        except BaseException:
            await self.close()
            raise
        self._answer = answer
        headers = answer.headers
        extensions = extensions_of(answer)
        if self._live is not None:
            headers += secret_headers(self._live)
            extensions = self._live.extensions
        body = Body(self._body(answer), self.close, self._count(answer))
        return response_of(self._request, answer.status, headers, extensions, body)

    def _count(self, answer: Answer) -> Callable[[bytes | None], None]:
        """Return what is to be told every piece of the body, and None at its end."""
        meter, usage = Meter(answer), of_run(self._scope.run)

        def count(piece: bytes | None) -> None:
            if piece is not None:
                meter.feed(piece)
            else:
                paid = self._live is not None or self._upstream is not None
                (usage.spent if paid else usage.saved).take(meter)

        return count

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._upstream is not None:
            await self._upstream.close()

    # --- the head

    async def _begin(self, *_: Any) -> Answer:
        request = self._request
        if self._resumable:  # a compressed stream cannot be gone on with
            request = with_header(request, "accept-encoding", "identity")
        self._live = response = await self._send(request)
        genai.note_status(response.status_code)
        if _is_stream(response):
            self._follow(response)
            return answer_of(response, None)
        pieces, begun, size = pieces_of(response), [], 0
        try:
            async for piece in pieces:
                begun.append(piece)
                size += len(piece)
                if size > RESULT_BYTES_MAX:
                    self._follow(response, pieces, begun)
                    return answer_of(response, None)
        finally:
            if self._upstream is None:
                await response.aclose()
        answer = answer_of(response, b"".join(begun))
        if self._about is not None:
            meter = Meter(answer)
            meter.feed(answer.body or b"")
            genai.note_usage(meter)
        if self._policy.retry is not None and Unanswered.fits(answer):
            self._live = None
            raise Unanswered(answer)
        return answer

    def _follow(
        self, response: httpx.Response, pieces: AsyncIterator[bytes] | None = None,
        begun: list[bytes] | None = None,
    ) -> Upstream:  # fmt: skip
        self._upstream = Upstream(
            self._scope.run, response, pieces=pieces, begun=begun, whole_events=self._resumable
        )
        return self._upstream

    # --- the body

    def _body(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        if answer.body is not None:
            return once(answer.body)
        # Nobody may see the half of what means nothing before it is whole.
        kind = header(answer, "content-type")
        policy = "hold" if kind.startswith(_JSON) else self._on_interrupt
        spec = StepSpec(
            self._name + BODY_SUFFIX, BytesCodec(self._name), on_interrupt=policy,
            about=self._about,
        )  # fmt: skip
        source: Source = self._resumed if policy == "resume" else self._pieces
        if self._about is not None:
            source = _metered(source, answer)
        return run_stream(self._scope, self._body_call, spec, source, (), {})

    async def _pieces(self) -> AsyncGenerator[bytes | Last[bytes], None]:
        """Give the body on as it comes; all of it again if a crash took it."""
        answer = self._known()
        upstream = self._upstream
        if upstream is None:
            encoding = header(answer, "content-encoding") or "identity"
            upstream = await self._again(with_header(self._request, "accept-encoding", encoding))
        ending = Ending() if is_plain_events(answer) else None
        try:
            while (piece := await upstream.read()) is not None:
                # With the end: no crash can make half an answer of a whole one.
                last = await _is_last(upstream, ending, piece)
                yield Last(piece) if last else piece
        except BaseException:
            await upstream.close()
            raise

    async def _resumed(
        self, *, recorded: Sequence[bytes]
    ) -> AsyncGenerator[bytes | Last[bytes], None]:
        """Give the body on; wherever it breaks off, let the provider go on from there."""
        progress, broken, ending = Progress(self._request), 0, Ending()
        for known in recorded:
            progress.take(known)
        if progress.begun and not progress.known:
            raise library_of(self._request).RemoteProtocolError(
                "the answer was cut, and does not say where it can be gone on with"
            )
        while not progress.over:
            upstream = self._upstream
            if upstream is None:
                request = progress.continuation()
                upstream = await self._again(with_header(request, "accept-encoding", "identity"))
            try:
                while (piece := await upstream.read()) is not None:
                    last = await _is_last(upstream, ending, piece)
                    over = progress.take(piece)
                    broken = 0
                    yield Last(piece) if last and over else piece
            except library_of(self._request).TransportError:
                if not progress.known or broken + 1 == len(_AGAIN_S):
                    raise  # with nothing read yet, another request would be paid for
            except BaseException:
                await upstream.close()
                raise
            else:
                if not progress.known or broken + 1 == len(_AGAIN_S):
                    return  # it is the provider's end of it
            self._upstream = None
            broken += 1
            await asyncio.sleep(_AGAIN_S[broken])

    async def _again(self, request: httpx.Request) -> Upstream:
        """Make the request for an answer that broke off, with some patience.

        Raises: TransportError, if the answer cannot be had or is not of the kind that it was.
        """
        library, status = library_of(request), self._known().status
        failure: Exception | None = None
        for pause_s in _AGAIN_S:
            hint = failure and delay_hint(failure, self._scope.run.log.now_ms() / 1000)
            await asyncio.sleep(max(pause_s, min(hint or 0.0, _HINT_S_MAX)))
            try:
                response = await self._send(request)
            except library.TransportError as error:
                failure = error
                continue
            if response.status_code == status:
                return self._follow(response)
            try:
                said = (await response.aread())[:_SAID_BYTES].decode(errors="replace")
            finally:
                await response.aclose()
            refusal = library.RemoteProtocolError(
                f"the answer broke off, and the request for the rest of it was answered with "
                f"{response.status_code}: {said}"
            )
            refusal.headers = dict(response.headers)
            failure = refusal
            if response.status_code < 500 and response.status_code not in (408, 429):
                break
        assert failure is not None
        raise failure

    def _known(self) -> Answer:
        assert self._answer is not None, "the head comes before the body"
        return self._answer


def _metered(source: Source, answer: Answer) -> Source:
    """Return a source that notes what the answer used, on the span of its step."""

    async def metered(**given: Any) -> AsyncGenerator[bytes | Last[bytes], None]:
        meter = Meter(answer)
        async with aclosing(source(**given)) as pieces:
            async for piece in pieces:
                last = isinstance(piece, Last)
                meter.feed(piece.value if isinstance(piece, Last) else piece)
                if last:  # nobody comes back for more
                    genai.note_usage(meter)
                yield piece
        genai.note_usage(meter)

    return metered


async def _is_last(upstream: Upstream, ending: Ending | None, piece: bytes) -> bool:
    """Say whether a piece is the last one; if so, the connection is left to its end."""
    if ending is None:
        return await upstream.is_over()
    if ending.reached(piece):
        upstream.finish()
        return True
    return await upstream.is_over(_END_S if ending.is_near(piece) else 0.0)


def _is_stream(response: httpx.Response) -> bool:
    """Say whether a body is worth something before it is whole."""
    kind = response.headers.get("content-type", "")
    return 200 <= response.status_code < 300 and not kind.startswith(_JSON) and bool(kind)
