"""The pure parts of a run: `python -m bench.apps.pure PART TIMES` does one so many times.

What is counted is the process, so `bench.instructions` takes one count from another.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Final

import orjson

from bench.apps import work
from durable_endpoints import durable, step
from durable_endpoints.asgi.sse import Splitter, with_id
from durable_endpoints.codec import Codec
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import start
from durable_endpoints.frames import pack, pack_entry, unpack
from durable_endpoints.journal import Journal
from durable_endpoints.records import Entry, Kind
from durable_endpoints.standing import standing
from durable_endpoints.stores.memory import MemoryStore

STEPS: Final = 100  # of a journal and of a run
_RESULT: Final = work.result(7)
_PAYLOAD: Final = orjson.dumps(_RESULT)
_BLOCK: Final = f"data: {work.token(7)}\n\n".encode()
_RUN_ID: Final = b"01a1fe31-0000-7000-8000-000000000000"
_AT_MS: Final = 1_800_000_000_000
_CHECK: Final = 0x5EED


def _packed() -> list[bytes]:
    return [
        pack_entry(Kind.STEP, b"0:%d one" % n, _CHECK, _AT_MS, 5, b"[7]", _PAYLOAD)
        for n in range(STEPS)
    ]


def _entries() -> list[Entry]:
    return unpack(pack(_packed()), 0)


def results(times: int) -> None:
    codec = Codec("one", dict[str, object])
    for _ in range(times):
        codec.record(_RESULT)


def entries_packed(times: int) -> None:
    for _ in range(times):
        pack_entry(Kind.STEP, b"0:7 one", _CHECK, _AT_MS, 5, b"[7]", _PAYLOAD)


def frames_packed(times: int) -> None:
    parts = _packed()
    for _ in range(times // STEPS):
        pack(parts)


def frames_unpacked(times: int) -> None:
    frame = pack(_packed())
    for _ in range(times // STEPS):
        unpack(frame, 0)


def kept_entries(times: int) -> None:
    entries = _entries()
    for _ in range(times // STEPS):
        standing(entries)


def journals_read(times: int) -> None:
    entries = _entries()
    for _ in range(times // STEPS):
        Journal(entries)


def steps_replayed(times: int) -> None:
    """Read a journal, and match every step of it; `journals_read` is a part of this."""
    entries = _entries()
    for _ in range(times // STEPS):
        journal = Journal(entries)
        for n in range(STEPS):
            call = journal.claim(f"0:{n}", "one", _CHECK, b"[7]")
            assert call is not None and journal.is_turn(call.deliveries[0])
            journal.deliver(call.deliveries[0])
        assert journal.exhausted


def events_cut(times: int) -> None:
    splitter = Splitter()
    for _ in range(times):
        splitter.feed(_BLOCK)


def events_numbered(times: int) -> None:
    for number in range(times):
        with_id(_BLOCK, _RUN_ID, number, _CHECK)


@step
async def one(number: int) -> dict[str, object]:
    return work.result(number)


@durable
async def hundred() -> int:
    return len([await one(n) for n in range(STEPS)])


@durable
async def none() -> int:
    return 0


async def _runs(endpoint: Callable[..., object], times: int, steps: int) -> None:
    engine = Engine(MemoryStore())
    await engine.open()
    for _ in range(times):
        run = await start(engine, endpoint)
        assert await run.result() == steps
    await engine.close()


def runs(times: int) -> None:
    asyncio.run(_runs(none, times, 0))


def steps(times: int) -> None:
    """Do runs of many steps; `runs` is a part of this."""
    asyncio.run(_runs(hundred, times // STEPS, STEPS))


PARTS: Final[dict[str, tuple[str, Callable[[int], None]]]] = {
    part.__name__: (title, part)
    for title, part in (
        ("a step's result to JSON and back", results),
        ("an entry to bytes", entries_packed),
        ("… into a frame", frames_packed),
        ("… and out of it again", frames_unpacked),
        ("an entry of a stored run: whether it still counts", kept_entries),
        ("… read for a replay", journals_read),
        ("… and matched by the step that is called again", steps_replayed),
        ("a token's event out of the app's response", events_cut),
        ("… and with its id to a reader", events_numbered),
        ("a step in a run, engine and event loop included", steps),
        ("a run without steps, without HTTP", runs),
    )
}


def main() -> None:
    name, times = sys.argv[1], int(sys.argv[2])
    gc.disable()  # it comes by a count of its own
    PARTS[name][1](times)


if __name__ == "__main__":
    main()
