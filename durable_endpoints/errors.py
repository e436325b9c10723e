"""Every exception of the package.

Failures form one tree under `DurableError`. Control signals derive from
`BaseException`, so that a handler's `except Exception` cannot swallow them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import isfinite


class DurableError(Exception):
    """Base class of everything that this package raises for a caller to handle."""


class NotSerializable(DurableError):
    """A value cannot be written to the journal.

    Attributes: `where` names the step (or event), `path` the place inside the value.
    """

    def __init__(self, where: str, path: str, reason: str) -> None:
        super().__init__(where, path, reason)
        self.where = where
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.where}: the value at {self.path} cannot be recorded: {self.reason}. "
            "Return JSON values (str, int, float, bool, None, list, dict with str keys), or "
            "annotate the return type with a dataclass or pydantic model."
        )


class PayloadTooLarge(DurableError):
    """A recorded value is larger than the limit for its kind (see `limits`)."""

    def __init__(self, where: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(where, size_bytes, limit_bytes)
        self.where = where
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.size_bytes:,} bytes exceed the limit of {self.limit_bytes:,}. "
            "Store large data elsewhere and record a reference to it."
        )


class StepFailed(DurableError):
    """A step whose failure is recorded: raised again, the same, at every replay.

    Attributes: `step`, `error_type` (class name of the original), `message`.
    """

    def __init__(self, step: str, error_type: str, message: str) -> None:
        super().__init__(step, error_type, message)
        self.step = step
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return f"step {self.step} failed: {self.error_type}: {self.message}"


class RetryAfter(DurableError):
    """Raised in a step: attempt it again, not before `delay` has passed.

    `delay`: seconds, a timedelta, or an aware datetime. Attributes: `seconds`, or `at_s`
    (seconds since 1970 UTC) if a time was given; the other one is None.
    Raises: ValueError for a naive datetime and for seconds that are no number.
    """

    def __init__(self, delay: float | timedelta | datetime, message: str = "") -> None:
        self.seconds: float | None = None
        self.at_s: float | None = None
        if isinstance(delay, datetime):
            if delay.utcoffset() is None:
                raise ValueError(f"RetryAfter({delay!r}): give the datetime a time zone")
            self.at_s = delay.timestamp()
        else:
            seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
            if not isfinite(seconds):
                raise ValueError(f"RetryAfter({delay!r}): give a finite number of seconds")
            self.seconds = seconds
        # The arguments are recorded, hence in JSON's terms.
        when = delay.isoformat() if isinstance(delay, datetime) else self.seconds
        super().__init__(when, message)
        self.message = message

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"again after {self.args[0]}" + (" s" if self.at_s is None else "")


class NonRetryableError(DurableError):
    """Raised in a step: another attempt would fail in the same way, so none is made."""


class Escalate(DurableError):
    """Raised in a step: a person has to look at it; `reason` tells them why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SignalTimeout(DurableError):
    """A wait's timeout passed before its signal came; `name` is the signal's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no signal {self.name!r} came within the timeout of the wait"


class AlreadyAnswered(DurableError):
    """The one answer that a wait takes was given; `answer` is that one, as JSON."""

    def __init__(self, name: str, answer: bytes) -> None:
        super().__init__(name, answer)
        self.name = name
        self.answer = answer

    def __str__(self) -> str:
        return f"the wait for {self.name!r} was answered before"


class SignalRefused(DurableError):
    """The wait for a signal does not take such data; the message says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the wait for {self.name!r} does not take this: {self.reason}"


class EffectAmbiguous(DurableError):
    """A crash came after an effect had begun; whether it took place is not known."""


class RunEnded(DurableError):
    """The run is at its end, or parked: it takes no signals; `status` says which."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(run_id, status)
        self.run_id = run_id
        self.status = status

    def __str__(self) -> str:
        return f"run {self.run_id} is {self.status}: it takes no signals"


class StreamAborted(DurableError):
    """The connection is cut so that its reader comes back: the run is not at its end here."""


class StreamInterrupted(DurableError):
    """A crash cut a stream step after part of it had been shown; `recorded` is that part."""

    def __init__(self, step: str, recorded: list[object]) -> None:
        super().__init__(step, recorded)
        self.step = step
        self.recorded = recorded

    def __str__(self) -> str:
        return (
            f"stream step {self.step} was interrupted after {len(self.recorded)} recorded items "
            "that readers have seen; choose on_interrupt= to say how it goes on"
        )


class StoreError(DurableError):
    """The store refused or failed."""


class StoreRefused(StoreError):
    """The store cannot be opened safely; the message says what to do."""


class StoreFailed(StoreError):
    """A write whose outcome is unknown (I9): nothing of it may be acknowledged."""


class StoreAway(StoreError):
    """The store cannot be reached now; nothing is lost, and the call may be made again."""


class Corrupt(StoreError):
    """Stored bytes fail their checksum (I20); the run concerned is quarantined."""


class RunNotFound(DurableError):
    """There is no such run, or it is not the caller's: the two are not told apart (I18)."""


class RunDeleted(RunNotFound):
    """The run was deleted for good (I21)."""


class Overloaded(DurableError):
    """No further run can be taken now; the message says why."""


class NotDurable(DurableError):
    """The call needs a durable run and there is none around it."""


class RunCancelled(DurableError):
    """The run was cancelled, so it has no result."""


class RunFailed(DurableError):
    """The run failed, so it has no result."""


class IllegalTransition(DurableError):
    """A status change that the transition table does not list: a bug in the engine."""


class ControlSignal(BaseException):
    """Base of the signals that unwind a handler without being a failure of it."""


class Diverged(ControlSignal):
    """Replay met something else than the journal holds (I11); `difference` says what."""

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference


class Fenced(ControlSignal):
    """The run is no longer this process's to commit for (I6, I22)."""
