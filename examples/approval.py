"""A refund that a person has to approve: today, or in three days, whatever happens to the server.

    cd examples
    durable run approval:app                # then open http://127.0.0.1:8000

or without a page:

    curl -N 127.0.0.1:8000/refunds --json '{"order": "A-17", "amount": 240, "reason": "broken"}'
    cat outbox.txt                          # the link that was sent to whom it concerns
    curl 127.0.0.1:8000/_durable/approvals/… --json '{"approved": true, "by": "Ann"}'

Stop the server while the refund waits, start it again tomorrow: it waits still, and nothing of it
was in memory meanwhile. `durable approvals` lists what is open and decides in a terminal.

What to notice:
- `approval` makes a link that is signed, expires, and decides once. Looking at it changes nothing,
  so programs that open links in mails do no harm.
- `notify` is an effect: the message is sent when the wait is durable, not again after a restart.
- `pay_back` is an effect too. Its key is the same for every attempt, so a payment service that
  knows keys pays once, even if the server dies in the middle of the call.

REFUND_DAYS says how long a person has, 3 by default; parts of a day are fine.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

from durable_endpoints import (
    ApprovalRequest,
    DurableMiddleware,
    Retry,
    SignalTimeout,
    approval,
    durable,
    effect,
    idempotency_key,
    step,
)

ADDRESS = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000")
PATIENCE = timedelta(days=float(os.environ.get("REFUND_DAYS", "3")))
ALONE_UP_TO = 50  # smaller refunds need no person

app = FastAPI(title="Refunds")
app.add_middleware(DurableMiddleware, store="sqlite:///approval.db")


class Refund(BaseModel):
    order: str = Field(max_length=40)
    amount: float = Field(gt=0, le=10_000)
    reason: str = Field(max_length=500)


async def send_link(request: ApprovalRequest) -> None:
    """Tell whom it concerns; a real app sends a mail, or a message with a button."""
    line = f"{request.name}: {request.summary}\n    {ADDRESS}{request.path}\n"
    with Path("outbox.txt").open("a") as outbox:
        outbox.write(line)
    print(line, end="", flush=True)


@step
async def look_up(order: str) -> dict[str, str]:
    """What an agent would find out by itself before it asks."""
    return {"order": order, "customer": f"customer of {order}"}


@effect(retry=Retry(attempts=10, maximum=30))
async def pay_back(order: str, amount: float) -> str:
    """Call the payment service. This one is a table; real ones take the key as a header."""
    key = idempotency_key()
    with closing(sqlite3.connect("payments.db")) as payments, payments:
        payments.execute("create table if not exists payments (key text primary key, what text)")
        payments.execute(
            "insert or ignore into payments values (?, ?)", (key, f"{order}: {amount:.2f}")
        )
    return key[:8]


@app.post("/refunds", response_class=EventSourceResponse)
@durable
async def refund(asked: Refund) -> AsyncIterator[dict[str, str]]:
    found = await look_up(asked.order)
    yield {"text": f"Looked up the {found['customer']}."}
    if asked.amount > ALONE_UP_TO:
        yield {"text": f"{asked.amount:.2f} is more than I may decide: I have asked a person."}
        try:
            decision = await approval(
                "refund",
                summary=f"Refund {asked.amount:.2f} for order {asked.order}?\n\n{asked.reason}",
                timeout=PATIENCE,
                notify=send_link,
            )
        except SignalTimeout:
            yield {"text": "Nobody has decided in time. The refund is off."}
            return
        who = decision.by or "Somebody"
        if not decision:
            yield {"text": f"{who} declined. {decision.comment}".strip()}
            return
        yield {"text": f"{who} approved on {decision.at:%d %B at %H:%M} UTC."}
    receipt = await pay_back(asked.order, asked.amount)
    yield {"text": f"Paid {asked.amount:.2f} back; the receipt is {receipt}."}


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("approval.html"))
