"""No example: three services that book flights, hotels and cars, for `saga.py` to call.

    python travel.py --port 8100

They know idempotency keys, as good services do, and count every call. They keep what is booked in
memory, so restart the saga's server and not this one. Faults are ordered:

    curl 127.0.0.1:8100/faults --json '{"car": [503, 503, 409]}'    # its next answers
    curl 127.0.0.1:8100/bookings
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

SERVICES = ("flight", "hotel", "car")


def create_app() -> Starlette:
    """Return the services' app."""
    bookings: dict[str, str] = {}  # "service/reference" -> confirmation
    answers: dict[str, dict[str, str]] = {}  # idempotency key -> what it was answered
    faults: dict[str, list[int]] = defaultdict(list)
    calls: list[str] = []

    async def book(request: Request) -> Response:
        service, reference = request.path_params["service"], request.path_params["reference"]
        key = request.headers["idempotency-key"]
        calls.append(f"{request.method} {service}")
        if faults[service]:
            status = faults[service].pop(0)
            return JSONResponse({"error": HTTPStatus(status).phrase}, status)
        if key not in answers:
            confirmation = f"{service}-{len(answers) + 1}"
            bookings[f"{service}/{reference}"] = confirmation
            answers[key] = {"confirmation": confirmation, "city": (await request.json())["city"]}
        return JSONResponse(answers[key], 201)

    async def cancel(request: Request) -> Response:
        service, reference = request.path_params["service"], request.path_params["reference"]
        calls.append(f"{request.method} {service}")
        if faults[f"cancel {service}"]:
            return Response(status_code=faults[f"cancel {service}"].pop(0))
        gone = bookings.pop(f"{service}/{reference}", None)
        return Response(status_code=204 if gone else 404)

    async def order_faults(request: Request) -> Response:
        for service, statuses in (await request.json()).items():
            faults[service] = list(statuses)
        return JSONResponse(dict(faults))

    async def show(_: Request) -> Response:
        shown = {"bookings": bookings, "calls": calls, "counts": Counter(calls)}
        return JSONResponse(shown)

    return Starlette(
        routes=[
            Route("/bookings", show),
            Route("/faults", order_faults, methods=["POST"]),
            Route("/{service}/{reference}", book, methods=["POST"]),
            Route("/{service}/{reference}", cancel, methods=["DELETE"]),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Services that book flights, hotels and cars.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    options = parser.parse_args()
    uvicorn.run(create_app(), host=options.host, port=options.port, log_level="warning")
