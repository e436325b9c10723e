"""How a request becomes a run, or is led to one that there is already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette._utils import get_route_path

from durable_endpoints.asgi.problems import Problem, overloaded
from durable_endpoints.asgi.request import capture, fingerprint, idempotency_key
from durable_endpoints.engine.endpoints import EndpointSpec
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import ControlSignal, Corrupt, Fenced, Overloaded, RunNotFound

if TYPE_CHECKING:
    from starlette.types import Scope

    from durable_endpoints.asgi.host import Host

# How often a request tries to take its keys. One is enough but in the moment in which another node
# takes them; where requests replace each other's runs, a moment may follow another.
_ATTEMPTS: Final = 100


class Attached(ControlSignal):
    """The request is answered by a run that there is already."""

    def __init__(self, run: LiveRun) -> None:
        super().__init__(run.id)
        self.run = run


@dataclass(slots=True)
class Opening:
    """A request on its way to a run. `origin` is its scope before mounts changed it."""

    host: Host
    spec: EndpointSpec
    scope: Scope
    origin: Scope
    body: bytes
    pattern: bool
    concurrency_key: str | None

    async def open(self) -> LiveRun:
        """Begin the run.

        Raises: Problem; Attached if another run answers; Corrupt if that is damaged.
        """
        principal = await self.host.principal_of(self.scope)
        name = f"{self.scope['method']} {self._route()}"
        for _ in range(_ATTEMPTS):
            try:
                run = await self._open(principal, name)
            except Overloaded as error:
                raise overloaded(str(error)) from error
            if run is not None:
                return run
        raise overloaded("others take the same key again and again; try again shortly")

    async def _open(self, principal: str | None, name: str) -> LiveRun | None:
        """Begin the run; None if it is to be looked again whether there is a run to be led to.

        Raises: Problem, Overloaded, Corrupt; Attached.
        """
        keys = self.host.engine.keys
        key = idempotency_key(self.scope)
        if key is None:
            return await self._exclusively(principal, name, None, None)
        # A key belongs to the address that it was sent to.
        key = f"{get_route_path(self.origin)} {key}"
        print_ = fingerprint(self.origin, self.body)
        known = await keys.reserve(principal, name, key)
        if known is not None:
            run = await self._found(known, principal)
            if run is None:
                return None
            if run.record.fingerprint != print_:
                detail = "this Idempotency-Key was used with another request; choose a new one"
                raise Problem(422, "idempotency-key-reused", detail)
            raise Attached(run)
        begun: LiveRun | None = None
        try:
            begun = await self._exclusively(principal, name, key, print_)
            return begun
        finally:
            self.host.spawn(keys.settle_by(principal, name, key, begun))

    async def _exclusively(
        self, principal: str | None, name: str, key: str | None, print_: str | None
    ) -> LiveRun | None:
        place, policy = self.concurrency_key, self.spec.on_conflict
        if place is None or policy == "queue":
            run = self._begin(principal, name, key, print_)
            return run if key is None else await self._accepted(run)
        conflicts = self.host.engine.conflicts
        async with conflicts.at(principal, name, place) as holder:
            if holder is not None and not await self._is_durable(holder):
                return None
            if holder is not None and policy == "attach":
                found = await self._found(holder, principal)
                if found is None:
                    return None
                raise Attached(found)
            if holder is not None and policy == "reject":
                detail = f"run {holder} is at work on {place!r}; try again when it has ended"
                raise Problem(409, "run-conflict", detail, fields={"run_id": holder})
            if holder is not None and policy == "replace":
                await conflicts.replace(holder, principal)
            return await self._accepted(self._begin(principal, name, key, print_, exclusive=True))

    async def _is_durable(self, run_id: str) -> bool:
        """Wait until a run is durable: before that nobody is told of it (I7). False if it goes."""
        live = self.host.engine.runs.get(run_id)
        if live is None:
            return True
        try:
            await live.durable(0)
        except Fenced:  # what it had appended may be on its way to the store all the same
            await live.log.flush()
            return False
        return True

    async def _found(self, run_id: str, principal: str | None) -> LiveRun | None:
        """Return a run that the store had just now; None if it was deleted since.

        Raises: Corrupt.
        """
        try:
            run = await self.host.engine.observe(run_id, principal)
        except RunNotFound:
            return None
        if run.damaged:
            raise Corrupt(run.id)
        return run

    async def _accepted(self, run: LiveRun) -> LiveRun | None:
        """Where other nodes may take the same key: wait until the store says whose it is."""
        engine = self.host.engine
        if engine.remote is None:
            return run
        try:
            await run.durable(0)
        except BaseException as error:
            # Should it be durable all the same, the next sweep goes on with it.
            run.fence("its request was ended")
            engine.forget(run)
            if isinstance(error, Fenced):
                return None
            raise
        return run

    def _begin(
        self, principal: str | None, name: str, key: str | None, print_: str | None, *,
        exclusive: bool = False,
    ) -> LiveRun:  # fmt: skip
        host, spec = self.host, self.spec
        if host.engine.away is not None:
            raise overloaded(f"{host.engine.away}; try again shortly")
        rewinds = host.wants_control(self.scope)
        deadline_ms = None
        if spec.timeout_s is not None:
            deadline_ms = host.engine.clock.due_ms() + int(spec.timeout_s * 1000)
        run = host.engine.begin(
            name, version=spec.version, principal=principal, key=key, fingerprint=print_,
            args=capture(self.origin, rewinds=rewinds, pattern=self.pattern,
                         deadline_ms=deadline_ms),
            payload=self.body, concurrency_key=self.concurrency_key, exclusive=exclusive,
        )  # fmt: skip
        run.rewind_aware = rewinds
        if deadline_ms is not None:
            run.waits.limit(deadline_ms)
        return run

    def _route(self) -> str:
        """Return the route's path as it is written in the app, below what it is mounted at."""
        template = getattr(self.scope.get("route"), "path", None)
        if template is None:
            return get_route_path(self.origin)
        mounted: str = self.scope.get("root_path", "")
        return mounted.removeprefix(self.origin.get("root_path", "")) + str(template)
