"""What an operator can do to a run. A further action is a further row of a table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from durable_endpoints.console.auth import Refused
from durable_endpoints.states import ENDED, REVIVABLE

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine
    from durable_endpoints.engine.run import LiveRun
    from durable_endpoints.records import RunRecord, WaitRecord


@dataclass(frozen=True, slots=True)
class Deal:
    """One thing to be done: to which run, by whom, with what a form said."""

    engine: Engine
    run: LiveRun
    form: Mapping[str, str]
    by: str


@dataclass(frozen=True, slots=True)
class Field:
    """An input of an action's form."""

    name: str
    label: str
    hint: str = ""
    lines: int = 1


@dataclass(frozen=True, slots=True)
class Action:
    """A button, what it says before it acts, when it is there, and what it does."""

    name: str
    label: str
    question: str
    fits: Callable[[RunRecord], bool]
    perform: Callable[[Deal], Awaitable[str]]
    said: str  # on the page that follows
    danger: bool = False
    fields: tuple[Field, ...] = ()
    leaves: bool = False  # the run is gone afterwards
    answers: str = ""  # the kind of wait that it answers
    confirm: str = ""  # what its button says, if not the label


async def _cancel(deal: Deal) -> str:
    await deal.engine.cancel(deal.run, by=deal.by)
    return f"asked to stop; now {deal.run.record.status}"


async def _delete(deal: Deal) -> str:
    if not await deal.engine.delete(deal.run):
        raise Refused(409, "Not yet", "The run has not ended. Cancel it before you delete it.")
    return "deleted"


async def _retry(deal: Deal) -> str:
    if not await deal.engine.retry(deal.run, by=deal.by):
        raise Refused(409, "Not now", "The run goes on already.")
    return "goes on"


async def _answer(deal: Deal, data: Any) -> str:
    name = deal.form.get("wait", "")
    receipt = await deal.engine.signal(deal.run, name, data, by=deal.by)
    return f"{name}: {receipt.outcome}"


async def _approve(deal: Deal) -> str:
    comment = deal.form.get("comment", "")
    return "approved " + await _answer(deal, {"approved": True, "comment": comment})


async def _decline(deal: Deal) -> str:
    comment = deal.form.get("comment", "")
    return "declined " + await _answer(deal, {"approved": False, "comment": comment})


async def _again(deal: Deal) -> str:
    return "again " + await _answer(deal, {"action": "retry"})


async def _give_up(deal: Deal) -> str:
    return "given up " + await _answer(deal, {"action": "fail"})


async def _give_result(deal: Deal) -> str:
    result = _json(deal.form.get("data", ""))
    return "result given " + await _answer(deal, {"action": "result", "result": result})


async def _signal(deal: Deal) -> str:
    return "sent " + await _answer(deal, _json(deal.form.get("data", "")))


def _json(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        said = f"What you gave is no JSON: {error}. Text needs quotes."
        raise Refused(400, "Not JSON", said) from None


def _waits(record: RunRecord) -> bool:
    return record.status in ("running", "suspended")


_COMMENT: Final = Field("comment", "Comment", "optional; the handler gets it")
_DATA: Final = Field("data", "Data, as JSON", '{"ok": true}', 4)

ACTIONS: Final = (
    Action(
        "retry", "Let it go on",
        "The failure that it stopped at is void; everything else that is recorded stays and is "
        "not done again.",
        lambda record: record.status in REVIVABLE, _retry, "The run goes on.",
    ),
    Action(
        "cancel", "Cancel",
        "The handler is stopped at its next await. What it has sent stays; what has a "
        "compensation is undone.",
        lambda record: record.status in ("running", "suspended", "diverged", "dead"),
        _cancel, "The run was asked to stop.", danger=True, confirm="Cancel this run",
    ),
    Action(
        "delete", "Delete",
        "The run and its journal are removed from the disk for good. Its readers get 410.",
        lambda record: record.status in ENDED, _delete, "The run was deleted.",
        danger=True, leaves=True, confirm="Delete this run",
    ),
    Action(
        "approve", "Approve", "", _waits, _approve, "You approved.", fields=(_COMMENT,),
        answers="approval",
    ),
    Action(
        "decline", "Decline", "", _waits, _decline, "You declined.", danger=True,
        fields=(_COMMENT,), answers="approval",
    ),
    Action(
        "again", "Try the step again", "", _waits, _again, "The step is tried again.",
        answers="decision",
    ),
    Action(
        "result", "Give its result", "The step counts as done, with this result.", _waits,
        _give_result, "The result was given.", fields=(_DATA,), answers="decision",
    ),
    Action(
        "fail", "Let it fail", "The handler gets the step's error.", _waits, _give_up,
        "The step failed.", danger=True, answers="decision",
    ),
    Action(
        "signal", "Send the signal", "", _waits, _signal, "The signal was sent.",
        fields=(_DATA,), answers="signal",
    ),
)  # fmt: skip
BY_NAME: Final = {action.name: action for action in ACTIONS}


def actions_for(record: RunRecord) -> list[Action]:
    """Return what can be done to a run as it is."""
    return [action for action in ACTIONS if not action.answers and action.fits(record)]


def actions_for_all(status: str) -> list[Action]:
    """Return what can be done to all runs of a status at once: to those that are parked."""
    names = {"dead": ("retry", "cancel", "delete"), "diverged": ("retry", "cancel")}
    return [BY_NAME[name] for name in names.get(status, ())]


def answers_to(wait: WaitRecord) -> list[Action]:
    """Return what can be said to an open wait."""
    return [action for action in ACTIONS if action.answers == wait.kind]
