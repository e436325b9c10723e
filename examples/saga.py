"""A trip is booked in whole or not at all: effects, retries, and compensations that undo.

    cd examples
    python travel.py                        # in one terminal: the services
    durable run saga:app                    # in another
    curl -N 127.0.0.1:8000/trips --json '{"city": "Lisbon"}'

Then have a service fail, and look at what is left of the bookings:

    curl 127.0.0.1:8100/faults --json '{"hotel": [503, 503], "car": [409]}'
    curl -N 127.0.0.1:8000/trips --json '{"city": "Porto"}'
    curl 127.0.0.1:8100/bookings

The hotel is asked three times, because 503 is worth another try; the car is not, because 409 will
be 409 again. The run fails, and what it has booked is cancelled, last booking first.

What to notice:
- Kill the server with kill -9 wherever you like, in the middle of the cancelling for instance, and
  start it again: every booking is made once and cancelled once.
- A compensation gets the arguments of the step that it undoes, not its result: give a step what
  its compensation needs. Here that is a reference of our own, the id of the run.
- Compensations are effects with retries of their own, for about an hour; what could not be undone
  even so is named in the run's error (`durable show last`).

The services are at TRAVEL_URL, http://127.0.0.1:8100 by default.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

from durable_endpoints import (
    DurableMiddleware,
    Retry,
    current_run,
    durable,
    effect,
    emit,
    idempotency_key,
)

TRAVEL_URL = os.environ.get("TRAVEL_URL", "http://127.0.0.1:8100")
ORDER = ("flight", "hotel", "car")

app = FastAPI(title="Trips")
app.add_middleware(DurableMiddleware, store="sqlite:///saga.db")


class Trip(BaseModel):
    city: str = Field(max_length=80)


def travel() -> httpx.AsyncClient:
    # The same key for every attempt, on every server, after every restart.
    headers = {"Idempotency-Key": idempotency_key()}
    return httpx.AsyncClient(base_url=TRAVEL_URL, headers=headers, timeout=10)


async def cancel(service: str, reference: str, _city: str) -> None:
    """Undo `book`, with its arguments. Nothing to cancel is as good as cancelled."""
    async with travel() as client:
        answer = await client.delete(f"/{service}/{reference}")
        if answer.status_code != 404:
            answer.raise_for_status()


@effect(retry=Retry(attempts=6, initial=0.2, maximum=30), timeout=20, compensate=cancel)
async def book(service: str, reference: str, city: str) -> str:
    async with travel() as client:
        answer = await client.post(f"/{service}/{reference}", json={"city": city})
        answer.raise_for_status()  # its status decides whether another attempt is worth it
        return str(answer.json()["confirmation"])


@app.post("/trips", response_class=EventSourceResponse)
@durable
async def book_trip(trip: Trip) -> AsyncIterator[dict[str, str]]:
    reference = current_run().id
    for service in ORDER:
        try:
            confirmation = await book(service, reference, trip.city)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            emit({"failed": service, "text": f"No {service}: {reason}. All is being cancelled."})
            raise  # the run fails: what is booked is undone
        yield {"booked": service, "text": f"The {service} is booked: {confirmation}."}
    yield {"text": f"Have a good time in {trip.city}!"}
