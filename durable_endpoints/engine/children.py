"""Child runs: durable runs of their own that a run begins, awaits, and takes with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any

import orjson

from durable_endpoints.engine.decisions import Wanted, durably
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import claim, settle
from durable_endpoints.errors import NotDurable, RunCancelled, RunDeleted, RunFailed
from durable_endpoints.ids import new_run_id
from durable_endpoints.records import Kind

logger = logging.getLogger("durable_endpoints")


class Child:
    """A handle on a child run; `await child` is `await child.result()`."""

    def __init__(self, run_id: str, name: str) -> None:
        self.id = run_id
        self._name = name

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def result(self) -> Any:
        """Wait for the child's end, however long, and return what it returned.

        Raises: RunFailed, RunCancelled; RunDeleted if it was deleted before anybody waited for it.
        """
        scope = SCOPE.get()
        if scope is None or scope.inert:
            raise NotDurable("a child run is awaited by the run that began it, outside of steps")
        ident = scope.next_call()
        _, payload = await durably(scope, ident, Wanted("child", self.id))
        outcome = orjson.loads(payload)
        if outcome["status"] == "cancelled":
            raise RunCancelled(self.id)
        if outcome["status"] == "deleted":
            raise RunDeleted(self.id)
        if outcome["status"] != "completed":
            raise RunFailed(f"run {self.id} {outcome['status']}: {outcome['error']}")
        return outcome["result"]


async def spawn(
    scope: Scope, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Child:
    """Begin a `@durable` function as a child run; the same child at every replay."""
    spec = getattr(function, "durable_endpoint", None)
    if spec is None:
        raise NotDurable(f"{function!r} is not @durable: decorate it first")
    run = scope.run
    ident, name = scope.next_call(), f"spawn {spec.name}"
    call = claim(run, ident, name, 0)
    fresh = call is None or call.value is None
    if call is not None and call.value is not None:
        child_id = call.value.decode()
    else:
        await settle(run)
        child_id = new_run_id(run.log.now_ms())
        run.append(Kind.SPAWN, f"{ident} {name}".encode(), child_id.encode())
    run.children[child_id] = spec.name
    cancellation = run.cancellation
    cancellation.look()
    try:
        await run.log.host.begin_child(run, child_id, function, args, kwargs, fresh=fresh)
    finally:
        cancellation.looked(run)
    return Child(child_id, spec.name)


async def cancel_children(run: LiveRun) -> None:
    """Cancel the children that are still at work; returns when that is durable."""
    for child_id in list(run.children):
        await run.log.host.cancel_child(run, child_id)
