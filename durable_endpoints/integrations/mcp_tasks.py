"""MCP's Tasks extension, on the wire; and what a client needs to have its calls run as tasks.

    async with Client(url, extensions=[Tasks()]) as client:
        result = await client.call_tool("research", {"topic": "tea"})  # however long it takes

Needs the extra `mcp`. The extension exists from protocol version 2026-07-28 on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx2
from mcp.client import ClientExtension, ClientRequestContext
from mcp.client.extension import ClaimContext, ResultClaim
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_REQUEST,
    CallToolResult,
    EmptyResult,
    ErrorData,
    InputRequests,
    InputResponses,
    Request,
    RequestParams,
    Result,
)

TASKS: Final = "io.modelcontextprotocol/tasks"
# Where a server finds the key that is the same for every attempt of a call.
KEY_META: Final = "durable-endpoints/idempotency-key"
GET: Final = "tasks/get"
UPDATE: Final = "tasks/update"
CANCEL: Final = "tasks/cancel"
_ASK_EVERY_S: Final = 1.0
_AGAIN_S: Final = 0.5
_PATIENCE_S: Final = 60.0
# What a client says by itself when its connection is gone.
LOST: Final = frozenset({CONNECTION_CLOSED})
Status = Literal["working", "input_required", "completed", "failed", "cancelled"]
Connect = Callable[[], AbstractAsyncContextManager[Any]]


class TaskParams(RequestParams):
    """The parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of `tasks/update`; answers to what was not asked may be anything."""

    input_responses: dict[str, Any]


class GetTask(Request[TaskParams, Literal["tasks/get"]]):
    """Asks how a task is."""

    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams
    name_param = "taskId"


class UpdateTask(Request[UpdateParams, Literal["tasks/update"]]):
    """Answers what a task has asked."""

    method: Literal["tasks/update"] = "tasks/update"
    params: UpdateParams
    name_param = "taskId"


class CancelTask(Request[TaskParams, Literal["tasks/cancel"]]):
    """Asks a task to stop."""

    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: TaskParams
    name_param = "taskId"


class Task(Result):
    """How a task is; `ttl_ms` None: it is kept until somebody deletes it."""

    task_id: str
    status: Status
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int | None = None


class CreatedTask(Task):
    """What `tools/call` returns of a call that goes on as a task."""

    result_type: Literal["task"] = "task"


class DetailedTask(Task):
    """What `tasks/get` returns: with the result, the error or the questions that there are."""

    result_type: Literal["complete"] = "complete"
    result: dict[str, Any] | None = None
    error: ErrorData | None = None
    input_requests: InputRequests | None = None


class Tasks(ClientExtension):
    """Tells servers that their tasks are understood, and sees them through.

    What a task asks is answered by the client's own callbacks (`elicitation_callback`, …). A
    client of the SDK ends with its connection; with `DurableClient` the same task is waited for
    on the next one.

    Raises, at the call: MCPError for a task that failed or was cancelled, or cannot be had.
    """

    identifier = TASKS

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """See `ClientExtension.claims`."""
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self._resolve)]

    @staticmethod
    async def _resolve(created: CreatedTask, context: ClaimContext) -> CallToolResult:
        watch = _Watch(created.task_id, asyncio.get_running_loop().time())
        return await _followed(watch, context.session)


async def task_result(
    connect: Connect, task_id: str, *, patience: float = _PATIENCE_S
) -> CallToolResult:
    """Wait for a task of an earlier connection, or an earlier process, and return its result.

    `connect` returns a new `Client(…, extensions=[Tasks()])`, and is called again when the server
    was away; after `patience` seconds without a word of the task that is an error.

    Raises: MCPError for a task that failed or was cancelled; what the connection raises.
    """
    loop = asyncio.get_running_loop()
    watch = _Watch(task_id, loop.time())
    while True:
        failure: Exception
        try:
            async with connect() as client:
                try:
                    return await _followed(watch, client.session)
                except Exception as error:  # noqa: BLE001 - the way out would group it
                    failure = error
        except Exception as error:  # noqa: BLE001 - raised below
            failure = error
        if not is_lost(failure) or loop.time() - watch.heard_s > patience:
            raise failure
        await asyncio.sleep(_AGAIN_S)


async def _followed(watch: _Watch, session: ClientSession) -> CallToolResult:
    while True:
        task = await get_task(session, watch.task_id)
        watch.heard_s = asyncio.get_running_loop().time()
        if task.status == "completed":
            return CallToolResult.model_validate(task.result or {}, by_name=False)
        if task.status == "failed":
            unknown = ErrorData(code=INVALID_REQUEST, message="the task failed")
            raise MCPError.from_error_data(task.error or unknown)
        if task.status == "cancelled":
            raise MCPError(INVALID_REQUEST, f"task {task.task_id} was cancelled")
        await _give(session, task, watch.answered)
        wait_ms = task.poll_interval_ms
        await asyncio.sleep(_ASK_EVERY_S if wait_ms is None else wait_ms / 1000)


async def _give(session: ClientSession, task: DetailedTask, answered: set[str]) -> None:
    """Answer what is asked for the first time."""
    found: InputResponses = {}
    for key, question in (task.input_requests or {}).items():
        if key not in answered:
            meta = question.params.meta if question.params else None
            context = ClientRequestContext(session=session, request_id=key, meta=meta)
            answer = await session.dispatch_input_request(context, question)
            if isinstance(answer, ErrorData):
                raise MCPError.from_error_data(answer)
            found[key] = answer
    if found:
        await update_task(session, task.task_id, found)
        answered.update(found)


@dataclass(slots=True)
class _Watch:
    """What is known of a task, over all connections."""

    task_id: str
    heard_s: float
    answered: set[str] = field(default_factory=set)


def is_lost(error: BaseException) -> bool:
    """Say whether an error is of the connection: another one may do."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_lost(one) for one in error.exceptions)
    if isinstance(error, MCPError):
        return error.code in LOST
    return isinstance(error, httpx2.TransportError)


async def get_task(session: ClientSession, task_id: str) -> DetailedTask:
    """Return how a task is."""
    request = GetTask(params=TaskParams(task_id=task_id))
    return await session.send_request(request, DetailedTask)


async def update_task(session: ClientSession, task_id: str, answers: InputResponses) -> None:
    """Answer what a task asks, by the keys of its questions; others are not looked at."""
    dumped = {key: answer.model_dump(mode="json", by_alias=True) for key, answer in answers.items()}
    params = UpdateParams(task_id=task_id, input_responses=dumped)
    await session.send_request(UpdateTask(params=params), EmptyResult)


async def cancel_task(session: ClientSession, task_id: str) -> None:
    """Ask a task to stop; what it has come to until then is told by `get_task`."""
    await session.send_request(CancelTask(params=TaskParams(task_id=task_id)), EmptyResult)
