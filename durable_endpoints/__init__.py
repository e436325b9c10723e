"""Low-latency durable HTTP endpoints for interactive agents."""

from durable_endpoints.asgi.middleware import DurableMiddleware
from durable_endpoints.engine.context import CurrentRun, current_run, emit, now, random, step, uuid7
from durable_endpoints.engine.endpoints import durable
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run
from durable_endpoints.errors import (
    DurableError,
    NotDurable,
    NotSerializable,
    Overloaded,
    PayloadTooLarge,
    RunCancelled,
    RunDeleted,
    RunFailed,
    RunNotFound,
    StepFailed,
    StoreError,
    StoreRefused,
    StreamInterrupted,
)
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.sqlite import SQLiteStore

__all__ = [
    "CurrentRun",
    "DurableError",
    "DurableMiddleware",
    "Engine",
    "MemoryStore",
    "NotDurable",
    "NotSerializable",
    "Overloaded",
    "PayloadTooLarge",
    "Run",
    "RunCancelled",
    "RunDeleted",
    "RunFailed",
    "RunNotFound",
    "SQLiteStore",
    "StepFailed",
    "StoreError",
    "StoreRefused",
    "StreamInterrupted",
    "current_run",
    "durable",
    "emit",
    "now",
    "random",
    "step",
    "uuid7",
]
