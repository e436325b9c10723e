"""What the engine tells of its work to whoever observes it; see `telemetry`.

Nothing is told of what a replay only takes again. Without an observer the price of each place is
one look at `Log.observer`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from durable_endpoints.records import Entry, Frame

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun
    from durable_endpoints.engine.steps import StepSpec

T = TypeVar("T")
# Identity and name of the step around the caller, while somebody observes.
STEP: Final[ContextVar[tuple[str, str] | None]] = ContextVar("durable_endpoints_step", default=None)


class Attempt(Protocol):
    """One going of a step's own function."""

    def note(self, about: Mapping[str, str | int]) -> None:
        """Note what is known of it only now: attributes of its span."""
        ...

    def enter(self) -> None:
        """Note that its code runs from here on, in this context."""
        ...

    def exit(self) -> None:
        """Note that the caller's code runs again."""
        ...

    def end(self, failure: BaseException | None) -> None:
        """Note that it is over."""
        ...


# The attempt whose code runs in this context, while somebody observes.
ATTEMPT: Final[ContextVar[Attempt | None]] = ContextVar("durable_endpoints_attempt", default=None)


class Observer(Protocol):
    """Is told of runs, steps and what is durable. Must not raise, nor wait."""

    def begun(self, run: LiveRun, args: bytes) -> bytes:
        """Note that a run begins; return what its first entry is to hold, a JSON object."""
        ...

    def resumed(self, run: LiveRun, entries: Sequence[Entry]) -> None:
        """Note that a run goes on over its journal, after a crash or a suspension."""
        ...

    def attempt(self, run: LiveRun, ident: str, spec: StepSpec) -> Attempt:
        """Note that a step begins; what is returned is told the rest."""
        ...

    def committed(self, run: LiveRun, frame: Frame) -> None:
        """Note what has become durable."""
        ...

    def left(self, run: LiveRun) -> None:
        """Note that the run goes on in another process."""
        ...


async def observed(seen: Attempt, work: Awaitable[T]) -> T:
    """Await a step's own code, and tell of it."""
    failure: Exception | None = None
    seen.enter()
    try:
        return await work
    except Exception as error:
        failure = error
        raise
    finally:
        seen.end(failure)


def observed_plain(seen: Attempt, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a step's own plain function, and tell of it."""
    failure: Exception | None = None
    seen.enter()
    try:
        return function(*args, **kwargs)
    except Exception as error:
        failure = error
        raise
    finally:
        seen.end(failure)


async def observed_items(seen: Attempt, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Iterate over a stream step's own code, and tell of it."""
    failure: Exception | None = None
    try:
        while True:
            seen.enter()
            try:
                item = await anext(source)
            except StopAsyncIteration:
                return
            except Exception as error:
                failure = error
                raise
            finally:
                seen.exit()
            yield item
    finally:
        seen.end(failure)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
