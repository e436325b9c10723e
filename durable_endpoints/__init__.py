"""Low-latency durable HTTP endpoints for interactive agents."""

from durable_endpoints.asgi.middleware import DurableMiddleware
from durable_endpoints.engine.children import Child
from durable_endpoints.engine.context import CurrentRun, current_run, emit, now, random, step, uuid7
from durable_endpoints.engine.effects import effect, idempotency_key
from durable_endpoints.engine.endpoints import durable
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run
from durable_endpoints.engine.waiting import (
    Approval,
    ApprovalRequest,
    approval,
    patched,
    send_signal,
    sleep,
    sleep_until,
    wait_for_signal,
)
from durable_endpoints.errors import (
    AlreadyAnswered,
    DurableError,
    EffectAmbiguous,
    Escalate,
    NonRetryableError,
    NotDurable,
    NotSerializable,
    Overloaded,
    PayloadTooLarge,
    RetryAfter,
    RunCancelled,
    RunDeleted,
    RunEnded,
    RunFailed,
    RunNotFound,
    SignalRefused,
    SignalTimeout,
    StepFailed,
    StoreError,
    StoreRefused,
    StreamInterrupted,
)
from durable_endpoints.quotas import RateLimit
from durable_endpoints.retry import Retry
from durable_endpoints.stores.edge import EdgeStore
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.sqlite import SQLiteStore

__all__ = [
    "AlreadyAnswered",
    "Approval",
    "ApprovalRequest",
    "Child",
    "CurrentRun",
    "DurableError",
    "DurableMiddleware",
    "EdgeStore",
    "EffectAmbiguous",
    "Engine",
    "Escalate",
    "MemoryStore",
    "NonRetryableError",
    "NotDurable",
    "NotSerializable",
    "Overloaded",
    "PayloadTooLarge",
    "RateLimit",
    "Retry",
    "RetryAfter",
    "Run",
    "RunCancelled",
    "RunDeleted",
    "RunEnded",
    "RunFailed",
    "RunNotFound",
    "SQLiteStore",
    "SignalRefused",
    "SignalTimeout",
    "StepFailed",
    "StoreError",
    "StoreRefused",
    "StreamInterrupted",
    "approval",
    "current_run",
    "durable",
    "effect",
    "emit",
    "idempotency_key",
    "now",
    "patched",
    "random",
    "send_signal",
    "sleep",
    "sleep_until",
    "step",
    "uuid7",
    "wait_for_signal",
]
