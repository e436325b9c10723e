"""Where a call stands: which run, which task of it, the how-many-eth call of that task (I12).

A task that a run's code creates gets a scope of its own, named by its parent's path, its
coroutine's name and how many of that name came before. Names keep a library's own tasks from
shifting the paths of the user's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeAlias

from durable_endpoints.engine.life import Life
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Fenced

Factory: TypeAlias = Callable[..., "asyncio.Future[Any]"]


class Scope:
    """One task of a run."""

    __slots__ = (
        "_children", "_inside", "born", "calls", "counted", "emits", "inert", "life", "loop",
        "parent", "path", "random", "run",
    )  # fmt: skip

    def __init__(self, run: LiveRun, path: str = "", parent: Scope | None = None) -> None:
        self.run = run
        self.life = run.life
        self.path = path
        self.calls = self.emits = 0
        self.inert = False  # inside a step: what it calls belongs to it
        self.loop = run.log.loop
        self.random: Random | None = None
        self.counted = False  # among the tasks that completions come to
        self.parent = parent
        self.born = 0 if parent is None else parent.calls  # how many it had made by then
        self._inside: Scope | None = None
        self._children: dict[str, int] | None = None

    def next_call(self) -> str:
        """Return the identity of the next call.

        Raises: Fenced in what is left of a handler that has been begun anew.
        """
        if self.life.halted:
            self.check_life()
            raise asyncio.CancelledError("the run has failed, and is being undone")
        number = self.calls
        self.calls = number + 1
        if not self.counted:
            self._count()
        return f"{self.path}{number}"

    def _count(self) -> None:
        """Note that completions come to this task, too: alone, if it goes on for another one."""
        pace = self.run.pace
        self.counted = True
        if pace.caller is None:
            pace.caller = self
        elif not pace.shared and not self.life.working and self._goes_on_for(pace.caller):
            pace.caller.counted, pace.caller = False, self
        else:
            pace.share(self.run)

    def _goes_on_for(self, before: Scope) -> bool:
        """Say whether a task has called nothing since it began this one, or one that led to it."""
        scope = self
        while scope.parent is not None:
            if scope.parent is before:
                return scope.born == before.calls
            scope = scope.parent
        return False

    def next_emit(self) -> str:
        """Return the identity of the next event beside the response."""
        if self.life.over:
            self.check_life()
        self.emits += 1
        return f"{self.path}e{self.emits}"

    def begin_work(self, ident: str) -> Life:
        """Note that a step of this task is at work; who is done calls `end` of what is returned."""
        life = self.life
        life.working += 1  # as `begin` does it, without the call
        life.at_work.add(ident)
        runner = SCOPE.get()
        if life.working > 1:
            self.run.pace.share(self.run)
        elif runner is not self:
            self._hand_over(runner, ident)
        return life

    def _hand_over(self, runner: Scope | None, ident: str) -> None:
        """Note that a call runs in another task than it was made in, as a response's stream does.

        As long as its maker calls nothing more, completions still come to one task alone.
        """
        pace = self.run.pace
        last = ident == f"{self.path}{self.calls - 1}"
        if runner is pace.caller and last and not pace.shared:
            return
        if pace.caller is self and last and runner is not None and not pace.shared:
            self.counted, runner.counted, pace.caller = False, True, runner
        else:
            pace.share(self.run)

    def check_life(self) -> None:
        """Raise Fenced in what is left of a handler that has been begun anew."""
        if self.life.over:
            raise Fenced("the run goes on without this task")

    def child(self, name: str) -> Scope:
        """Return the scope of a task that this one creates."""
        if self._children is None:
            self._children = {}
        number = self._children.get(name, 0)
        self._children[name] = number + 1
        scope = Scope(self.run, f"{self.path}{name}.{number}/", self)
        scope.inert = self.inert
        return scope

    def is_ahead(self, ident: str) -> bool:
        """Say whether a call that is yet to be made is this task's, or of one it will create."""
        if not ident.startswith(self.path):
            return False
        task, below, _ = ident[len(self.path) :].partition("/")
        name, _, number = task.rpartition(".")
        if not below or not number.isdecimal():
            return True
        return int(number) >= (self._children or {}).get(name, 0)

    def inside_step(self) -> Scope:
        """Return the scope for a step's own body, where every primitive is the plain call."""
        if self._inside is None:
            self._inside = Scope(self.run, self.path)
            self._inside.inert = True
        return self._inside


SCOPE: ContextVar[Scope | None] = ContextVar("durable_endpoints_scope", default=None)


def install_task_factory(loop: asyncio.AbstractEventLoop) -> None:
    """Give every task that a run creates its scope; keep the factory that is there."""
    inner: Factory | None = loop.get_task_factory()
    if getattr(inner, "durable_endpoints", False):
        return

    def factory(
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        *,
        context: Context | None = None,
        **more: Any,
    ) -> asyncio.Future[Any]:
        scope = SCOPE.get() if context is None else context.get(SCOPE)
        if scope is not None:
            name = getattr(coro, "__qualname__", "task").replace(" ", "_")
            context = copy_context() if context is None else context.copy()
            context.run(SCOPE.set, scope.child(name))
        if context is not None:
            more["context"] = context
        if inner is not None:
            return inner(loop, coro, **more)
        return asyncio.Task(coro, loop=loop, **more)

    factory.durable_endpoints = True  # type: ignore[attr-defined]
    loop.set_task_factory(factory)
