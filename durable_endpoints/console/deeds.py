"""Actions: a form of ours, from somebody who may, on a run that is in a state for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse, Response

from durable_endpoints.console.actions import BY_NAME, Action, Deal
from durable_endpoints.console.audit import Deed
from durable_endpoints.console.auth import Refused, read_form
from durable_endpoints.console.search import PAGE_ROWS
from durable_endpoints.errors import DurableError, RunNotFound, StoreError

if TYPE_CHECKING:
    from durable_endpoints.console.visit import Visit

MANY: Final = frozenset({"retry", "cancel", "delete"})


async def act(visit: Visit) -> Response:
    """Do something to one run."""
    run_id = visit.run_id
    with_form = await read(visit, run_id)
    action = await _do(visit, run_id, with_form)
    back = "/" if action.leaves else f"/console/runs/{run_id}"
    return RedirectResponse(visit.url(back, done=action.name), 303)


async def act_on_many(visit: Visit) -> Response:
    """Do something to all runs of a page of the list; those that do not take it are left."""
    form = await read(visit, "many")
    done = left = 0
    for run_id in form.get("runs", "").split(",")[:PAGE_ROWS]:
        try:
            await _do(visit, run_id, form, MANY)
        except (Refused, RunNotFound):
            left += 1
        else:
            done += 1
    name = visit.request.path_params["action"]
    return RedirectResponse(
        visit.url("/", status=form.get("status"), done=name, n=done, left=left), 303
    )


async def read(visit: Visit, run_id: str, action: str | None = None) -> dict[str, str]:
    """Return the form, once it is sure that it is ours and that the visitor may act."""
    try:
        form = await read_form(visit.request)
        if not visit.visitor.may_act:
            raise _not_theirs()
    except Refused as error:
        note(visit, run_id, f"refused: {error.title.lower()}", action)
        raise
    return form


def _not_theirs() -> Refused:
    return Refused(403, "Not yours to do", "A viewer looks. Ask an operator to act.")


async def _do(
    visit: Visit, run_id: str, form: Mapping[str, str], among: frozenset[str] | None = None
) -> Action:
    """Do it, and note what came of it, whatever that is."""
    outcome = "failed"
    try:
        action, outcome = await _perform(visit, run_id, form, among)
    except Refused as error:
        outcome = f"refused: {error.title.lower()}"
        raise
    finally:
        note(visit, run_id, outcome)
        visit.console.digests.forget(run_id)
    return action


async def _perform(
    visit: Visit, run_id: str, form: Mapping[str, str], among: frozenset[str] | None
) -> tuple[Action, str]:
    name = visit.request.path_params["action"]
    action = BY_NAME.get(name)
    if action is None or (among is not None and name not in among):
        raise Refused(404, "No such action", "This console does not know that action.")
    record = await visit.record(run_id)
    if not action.fits(record):
        said = f"The run is {record.status}: it does not take that."
        raise Refused(409, "Not now", said)
    run = await visit.engine.observe(record.run_id, record.principal)
    try:
        return action, await action.perform(Deal(visit.engine, run, form, visit.visitor.name))
    except (RunNotFound, StoreError):
        raise
    except DurableError as error:  # the run, or the wait, does not take it
        raise Refused(409, "Not taken", f"{error}.") from error


def note(visit: Visit, run_id: str, outcome: str, action: str | None = None) -> None:
    """Write down what came of an action."""
    client = visit.request.client
    visit.console.audit.note(
        Deed(
            visit.now_ms, visit.visitor.name, visit.visitor.role, client.host if client else "",
            action or visit.request.path_params["action"], run_id, outcome,
        )
    )  # fmt: skip
