"""How a run ends, by what became of its handler; what is undone before that."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import orjson

from durable_endpoints import failures
from durable_endpoints.engine.children import cancel_children
from durable_endpoints.engine.outcomes import described, is_cancellation
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.undo import PREFIX, compensate
from durable_endpoints.records import Kind

logger = logging.getLogger("durable_endpoints")
# How long tasks that outlive a failed handler are waited for: ten seconds.
_LOOK_S: Final = 0.01
_SIBLING_LOOKS: Final = 1000


async def conclude(
    run: LiveRun, error: BaseException | None, *, complete: bool, leaving: bool, result: bytes = b""
) -> None:
    """Append the terminal entry that fits what became of the handler (I15).

    `complete`: whether its response is; `result`: what a call returned, as JSON. A run that
    fails or is cancelled is undone before: its compensations run, its children are cancelled.
    """
    life, cancellation = run.life, run.cancellation
    if run.fenced is not None or run.over:
        return
    if not cancellation.asked or cancellation.pending:  # nobody here has told the handler to stop
        if leaving and not complete:
            # Frameworks cut their streams when the server stops: no word about the run.
            _leave(run, "the server is being stopped")
            return
        if error is not None and is_cancellation(error) and run.error is None:
            _leave(run, "the server cancelled the request; the run is taken up again")
            return
    if run.replay is not None and (
        cancellation.asked or error is not None or run.error is not None
    ):
        await _let_siblings_replay(run)
    replay = run.replay
    failed = cancellation.asked or error is not None or run.error is not None
    if replay is not None and not replay.journal.exhausted_but(PREFIX if failed else None):
        run.diverge(replay.journal.difference())
        return
    if error is None and not complete and not cancellation.asked and run.error is None:
        failed, run.error = True, "the app returned before its response was complete"
    if failed and not cancellation.asked and not run.undo and is_given_up(run, error):
        assert run.given_up is not None
        cancellation.move("given up")
        run.append(Kind.GAVE_UP, run.given_up[1])
        run.park("dead", described(error) if error is not None else None)
        run.waits.stop()  # what is listed stays: a retry comes back to it
        return
    left = await _unwind(run) if failed else []
    if run.life is not life or run.fenced is not None or run.over:  # type: ignore[redundant-expr]
        return
    _end(run, error, left, result)


def _leave(run: LiveRun, reason: str) -> None:
    run.task = None  # it is at its end: its last cancellation came from outside
    run.fence(reason, keep=True)


def _end(run: LiveRun, error: BaseException | None, left: list[str], result: bytes) -> None:
    text = f"; not undone: {', '.join(left)}" if left else ""
    if run.cancellation.asked:
        run.end(Kind.CANCELLED, "cancelled", text[2:] or None, _left(left))
    elif run.error is not None:
        run.end(Kind.FAILED, "failed", run.error + text, _left(left))
    elif error is not None:
        dumped: dict[str, Any] = orjson.loads(failures.dump(error))
        run.end(Kind.FAILED, "failed", described(error) + text, orjson.dumps(dumped | _named(left)))
    else:
        run.end(Kind.COMPLETED, "completed", None, result)


def _named(left: list[str]) -> dict[str, list[str]]:
    return {"not_undone": left} if left else {}


def _left(left: list[str]) -> bytes:
    return orjson.dumps(_named(left)) if left else b""


async def _let_siblings_replay(run: LiveRun) -> None:
    """Wait for tasks that outlive the handler's failure to take what is recorded of them."""
    for _ in range(_SIBLING_LOOKS):
        if run.replay is None or run.replay.journal.exhausted_but(PREFIX):
            return
        await asyncio.sleep(_LOOK_S)


async def _unwind(run: LiveRun) -> list[str]:
    if not run.undo and not run.children:
        return []
    life = run.life
    life.halted = True
    for _ in range(_SIBLING_LOOKS):  # what other tasks have begun is undone with the rest
        if not life.working:
            break
        await asyncio.sleep(_LOOK_S)
    run.cancellation.move("unwinding")
    life.working += 1  # somebody is at work on it, though the handler is at its end
    try:
        await cancel_children(run)
        return await compensate(run) if run.undo else []
    finally:
        life.working -= 1


def is_given_up(run: LiveRun, error: BaseException | None) -> bool:
    """Say whether an error is the failure of a step that has used up its retries."""
    if error is None or run.given_up is None:
        return False
    if isinstance(error, BaseExceptionGroup):
        return any(is_given_up(run, inner) for inner in error.exceptions)
    while error is not None and error is not run.given_up[0]:  # a library may have wrapped it
        error = error.__cause__
    return error is not None
