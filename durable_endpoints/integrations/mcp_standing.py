"""How a tool call's run is, in the words of MCP's Tasks extension: read from the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR

from durable_endpoints.asgi.fields import iso
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.records import Entry, Kind, RunRecord

# Steps that hold what the tool asks, and what it gave before its work is undone.
ASKED: Final = "input required"
ENDING: Final = "result"
# The signals that answer: this, the number of the round, the question's place in it.
INPUT: Final = "input "
_PARKED: Final = "its code has changed: an operator has to look at it"


@dataclass(frozen=True, slots=True)
class Question:
    """What a tool asks, and the signal that answers it."""

    signal: str
    request: dict[str, Any]


def _task(record: RunRecord, status: str, poll_ms: int) -> dict[str, Any]:
    return {
        "taskId": record.run_id,
        "status": status,
        "createdAt": iso(record.created_at_ms),
        "lastUpdatedAt": iso(record.updated_at_ms),
        "ttlMs": None,
        "pollIntervalMs": poll_ms,
    }


def created(record: RunRecord, poll_ms: int) -> dict[str, Any]:
    """Return the result of a call that goes on as a task."""
    return {"resultType": "task", **_task(record, "working", poll_ms)}


async def detailed(engine: Engine, run: LiveRun, poll_ms: int) -> dict[str, Any]:
    """Return what `tasks/get` says of a run."""
    record = run.record
    if run.ended:
        if record.status == "cancelled":
            return _task(record, "cancelled", poll_ms)
        outcome = await _outcome(engine, run)
        if "error" in outcome:
            said = {"statusMessage": outcome["error"]["message"], "error": outcome["error"]}
            return _task(record, "failed", poll_ms) | said
        return _task(record, "completed", poll_ms) | {"result": outcome["result"]}
    if record.status == "diverged":
        return _task(record, "working", poll_ms) | {"statusMessage": _PARKED}
    questions = await outstanding(engine, run)
    if questions:
        asked = {key: question.request for key, question in questions.items()}
        return _task(record, "input_required", poll_ms) | {"inputRequests": asked}
    return _task(record, "working", poll_ms)


async def result_of(engine: Engine, run: LiveRun) -> dict[str, Any]:
    """Return the result of a call whose run has ended.

    Raises: MCPError, if that is its answer.
    """
    if run.record.status == "cancelled":
        raise MCPError(INTERNAL_ERROR, "the call was cancelled")
    if run.record.status == "diverged":
        raise MCPError(INTERNAL_ERROR, _PARKED)
    outcome = await _outcome(engine, run)
    if "error" in outcome:
        error = outcome["error"]
        raise MCPError(error["code"], error["message"], error.get("data"))
    result: dict[str, Any] = outcome["result"]
    return result


async def outstanding(engine: Engine, run: LiveRun) -> dict[str, Question]:
    """Return what a run has asked its client and has no answer to yet, by the wire's keys."""
    if run.ended:
        return {}
    entries = await read_journal(engine.store, run.id)
    asked: dict[str, Question] = {}
    for entry in entries:
        if _is_step(entry, ASKED):
            requests: dict[str, Any] = orjson.loads(entry.payload)
            number = next(iter(requests), "").partition(".")[0]
            asked = {
                key: Question(f"{INPUT}{number}.{place}", request)
                for place, (key, request) in enumerate(requests.items())
            }
    known = {entry.key for entry in entries if entry.kind == Kind.SIGNAL}
    return {key: question for key, question in asked.items() if question.signal not in known}


async def _outcome(engine: Engine, run: LiveRun) -> dict[str, Any]:
    """Return what an ended run came to: `result` or `error`."""
    if run.record.status == "completed":
        end = run.record.last_seq
        last = (await read_journal(engine.store, run.id, seq=end, last=end))[-1]
        outcome: dict[str, Any] = orjson.loads(last.payload)
        return outcome
    for entry in reversed(await read_journal(engine.store, run.id, last=run.record.last_seq)):
        if _is_step(entry, ENDING):
            ending: dict[str, Any] = orjson.loads(entry.payload)
            return ending
    # Its text is for operators.
    kind = (run.record.error or run.record.status).partition(":")[0]
    return {"error": {"code": INTERNAL_ERROR, "message": f"the tool failed: {kind}"}}


def _is_step(entry: Entry, name: str) -> bool:
    return entry.kind == Kind.STEP and entry.key.partition(" ")[2] == name
