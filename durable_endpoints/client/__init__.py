"""A client that follows durable runs until they are done.

A lost connection, a restarted server and a lost answer are its business, not the caller's:

    async with DurableClient("http://localhost:8000") as client:
        async with client.stream("POST", "/chat", json={"prompt": "hi"}) as run:
            async for item in run:
                if isinstance(item, Event):
                    print(item.data, end="")

Every item comes once and in order. What a `Rewind` took back is gone from `run.events` and
`run.text`; who shows items as they come drops those with an offset above `Rewind.to`.
"""

from durable_endpoints.client.answers import ConnectionLost, HistoryDiverged, ResponseError
from durable_endpoints.client.http import DurableClient
from durable_endpoints.client.sse import Message, SSEDecoder
from durable_endpoints.client.stream import Event, Rewind, RunStream

__all__ = [
    "ConnectionLost",
    "DurableClient",
    "Event",
    "HistoryDiverged",
    "Message",
    "ResponseError",
    "Rewind",
    "RunStream",
    "SSEDecoder",
]
