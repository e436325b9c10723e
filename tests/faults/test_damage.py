"""Flipped bits: the damaged run is set aside, loudly, and nobody gets wrong bytes (I20)."""

from __future__ import annotations

import asyncio
import importlib
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from durable_endpoints import Engine, SQLiteStore, StoreRefused, durable
from durable_endpoints.records import RunRecord
from tests.crash.process import CrashServer
from tests.engine.worlds import world
from tests.support.damage import change_row

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]
FLIPS = 60
GONE_S = 0.2  # what a process that would be gone is given to end what it does
PATHS = ("/json?n=5&ms=1", "/sse?n=5&ms=1", "/tokens/resume?n=5&ms=1", "/values?n=8&ms=1")
KINDS = ("response", "stream", "journal")
WRONG = "200 with wrong bytes"
PAGE = 4096
NOTICED = {"500 run-damaged", "500 run-dead", "503 store-unavailable"}


@dataclass
class Base:
    """A store as a kill left it, and what its runs had answered."""

    directory: Path
    bodies: dict[str, dict[str, bytes]]  # of the finished ones: by run id, by kind of question
    interrupted: set[str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base"))


def make_base(directory: Path) -> Base:
    """Let a server do some work and be killed at more of it."""
    server = CrashServer(directory)
    server.start()
    bodies = {}
    for path in PATHS * 6:
        run_id = httpx.post(server.url + path).headers["durable-run-id"]
        bodies[run_id] = {
            kind: httpx.get(f"{server.url}/_durable/runs/{run_id}/{kind}").content for kind in KINDS
        }
    server.terminate()  # in good order: the log is folded into the database
    server.start()
    interrupted: set[str] = set()
    threads = [threading.Thread(target=_interrupted, args=(server.url + path, interrupted))
               for path in ("/json?ms=25", "/sse?ms=25", "/tokens/resume?ms=25")]  # fmt: skip
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(interrupted) < len(threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.kill()
    for thread in threads:
        thread.join()
    return Base(directory, bodies, interrupted)


def _interrupted(url: str, found: set[str]) -> None:
    headers = {"prefer": "respond-async"}
    found.add(httpx.post(url, headers=headers).headers["durable-run-id"])


@pytest.fixture(scope="module")
def crashy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The crash app in this process; it counts executions where it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("counts"))
        yield importlib.import_module("tests.apps.crashy")


class _Gone:
    """Where a process would be gone: who waits for an answer then is let go at once."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._waiting: asyncio.Timeout | None = None

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def note(self, reason: str) -> None:
        """Take the place of the end of the process."""
        self.reasons.append(reason)
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time() + GONE_S)

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Give something thirty seconds; who asks a process that would be gone gets no answer."""
        try:
            async with asyncio.timeout(GONE_S if self else 30) as self._waiting:
                yield
        except TimeoutError:
            if not self:
                raise
        finally:
            self._waiting = None


async def _look(crashy: ModuleType, database: Path, base: Base) -> Counter[str]:
    """Open a damaged store, ask for everything, and say what came."""
    gone = _Gone()
    store = SQLiteStore(database, lock_wait_s=1)
    engine = Engine(store, on_failure=gone.note)
    app = crashy.build(engine=engine)
    came: Counter[str] = Counter()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        await engine.open()
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for run_id in [*base.bodies, *base.interrupted]:
                for kind in KINDS:
                    if gone:
                        break
                    async with gone.patience():
                        came[await _ask(http, run_id, kind, base, gone)] += 1
            if not gone:
                async with gone.patience():
                    answer = await http.post("/json?n=2&ms=0")
                    came[f"new {answer.status_code}"] += 1
    except StoreRefused:
        came["refused"] += 1
    finally:
        if engine.is_open:
            async with gone.patience():
                await engine.close()
    if gone:
        came["left"] += 1
    return came


async def _ask(http: httpx.AsyncClient, run_id: str, kind: str, base: Base, gone: _Gone) -> str:
    deadline = asyncio.get_running_loop().time() + 20
    path = f"/_durable/runs/{run_id}"
    while kind != "journal" and run_id in base.interrupted:
        status = (await http.get(path)).json().get("status")
        if status != "running" or gone:
            break
        assert asyncio.get_running_loop().time() < deadline, f"{run_id} does not end"
        await asyncio.sleep(0.02)
    answer = await http.get(f"{path}/{kind}")
    if answer.status_code == 200:
        known = base.bodies.get(run_id)
        return "200" if known is None or answer.content == known[kind] else WRONG
    if answer.headers.get("content-type") != "application/problem+json":
        return f"{answer.status_code} without a problem"
    return f"{answer.status_code} {answer.json()['type'].rpartition('/')[2]}"


@pytest.mark.parametrize("place", ["anywhere", "page heads"])
def test_flipped_bits(
    place: str, base: Base, crashy: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    total: Counter[str] = Counter()
    for seed in range(FLIPS):
        came, wrong = flip_and_look(seed, place, base, crashy, tmp_path / str(seed))
        assert wrong is None, wrong
        total += came
    with capfd.disabled():
        print(f"\n{FLIPS} flips {place}: {dict(total)}")
    assert total["200"] > 3 * (len(base.bodies) + len(base.interrupted)) * FLIPS // 2


def flip_and_look(
    seed: int, place: str, base: Base, crashy: ModuleType, work: Path
) -> tuple[Counter[str], str | None]:
    """Flip one bit and ask for everything; returns what came, and what is wrong with it."""
    asked = 3 * (len(base.bodies) + len(base.interrupted))
    shutil.copytree(base.directory, work)
    try:
        _flip(work / "durable.db", random.Random(seed), place)
        came = asyncio.run(_look(crashy, work / "durable.db", base))
    finally:
        shutil.rmtree(work)
    if not came[WRONG] and (came["refused"] or came["left"]):
        return came, None
    strange = {key for key in came if key not in NOTICED and key not in {"200", "new 200"}}
    # One page holds the journals of several short runs, never those of most.
    if strange or came["200"] < asked * 2 // 3:
        return came, f"flip {seed} {place}: {dict(came)}"
    return came, None


@pytest.mark.parametrize("end", ["left", "refused"])
def test_wrong_bytes_before_a_process_leaves_are_wrong(
    end: str, base: Base, crashy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter({"200": 3 * (len(base.bodies) + len(base.interrupted)), end: 1})

    async def look(*_: object) -> Counter[str]:
        return asked

    monkeypatch.setitem(flip_and_look.__globals__, "_look", look)
    assert flip_and_look(1, "anywhere", base, crashy, tmp_path / "right")[1] is None
    asked[WRONG] = 1
    wrong = flip_and_look(1, "anywhere", base, crashy, tmp_path / "wrong")[1]
    assert wrong is not None
    assert WRONG in wrong


@pytest.mark.parametrize("kind", KINDS)
def test_other_bytes_of_any_kind_would_show(
    kind: str, base: Base, crashy: ModuleType, tmp_path: Path
) -> None:
    """And an undamaged store gives the same ones, in another process, to every question."""
    one = next(iter(base.bodies))
    other = {**base.bodies, one: {**base.bodies[one], kind: b"other"}}
    shutil.copytree(base.directory, tmp_path / "store")
    told = Base(base.directory, other, set())
    came = asyncio.run(_look(crashy, tmp_path / "store" / "durable.db", told))
    assert came == {"200": 3 * len(base.bodies) - 1, WRONG: 1, "new 200": 1}


def _flip(file: Path, chance: random.Random, place: str) -> None:
    data = bytearray(file.read_bytes())
    at = chance.randrange(len(data))
    if place == "page heads":
        at -= at % PAGE
        at += chance.randrange(100 if at == 0 else 40)
    data[at] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def test_a_schema_that_cannot_even_be_quoted_is_refused(tmp_path: Path) -> None:
    """SQLite's message holds the damaged bytes, which are no Unicode."""
    file = tmp_path / "durable.db"

    async def open_and_close() -> None:
        store = SQLiteStore(file, lock_wait_s=1)
        await store.open()
        await store.close()

    asyncio.run(open_and_close())
    data = file.read_bytes()
    at = data.lower().index(b"create table runs (") + len("create ta")
    file.write_bytes(data[:at] + b"\xa0" + data[at + 1 :])
    with pytest.raises(StoreRefused, match="cannot be opened"):
        asyncio.run(open_and_close())


@durable
async def endless() -> None:
    await asyncio.Event().wait()


def test_a_run_of_which_sqlite_can_read_nothing_is_set_aside_at_once(tmp_path: Path) -> None:
    """As one whose bytes fail their checksum: to try again and again would mend nothing."""
    file = tmp_path / "durable.db"

    async def begin() -> str:
        async with world(SQLiteStore(file)) as one:
            run = await one.start(endless)
            await (await one.engine.observe(run.id)).durable(0)
            return run.id

    async def come_back(run_id: str) -> str:
        async with world(SQLiteStore(file)) as one:
            return (await one.ended(run_id)).status

    run_id = asyncio.run(begin())
    with closing(sqlite3.connect(file)) as database:
        sql = "select rootpage from sqlite_master where name = 'frames'"
        (page,) = database.execute(sql).fetchone()
    data = bytearray(file.read_bytes())
    data[(page - 1) * PAGE] ^= 0xFF
    file.write_bytes(data)
    assert asyncio.run(come_back(run_id)) == "dead"


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize(
    "place",
    ["frames.first_offset", "frames.events", "frames.entries", "frames.hash_in", "runs.last_seq",
     "runs.events"],
)  # fmt: skip
def test_a_row_that_lies(
    place: str, by: int, base: Base, crashy: ModuleType, tmp_path: Path
) -> None:
    """What a frame's checksum does not cover is held against its bytes."""
    work = tmp_path / "work"
    shutil.copytree(base.directory, work)
    table, _, column = place.partition(".")
    with closing(sqlite3.connect(work / "durable.db")) as database:
        changed = database.execute(f"update {table} set {column} = {column} + ?", (by,)).rowcount
        database.commit()
    assert changed > len(base.bodies)
    came = asyncio.run(_look(crashy, work / "durable.db", base))
    # The journal's own page may still be read: it is for people, and looks at no row of a run.
    # A run that had only begun has no entry any more, if its row is believed.
    assert came["500 run-damaged"] >= 2 * len(base.bodies)
    assert set(came) <= NOTICED | {"200", "new 200", "404 run-not-found"}


def damaged_row(base: Base, place: Path, run_id: str, damage: str) -> Path:
    """Return a copy of a database with values in a run's row that its schema would refuse."""
    work = place / "work"
    shutil.copytree(base.directory, work)
    assert change_row(work / "durable.db", "runs", f"{damage} where run_id = ?", run_id) == 1
    return work / "durable.db"


@pytest.mark.parametrize(
    "damage",
    ["name = x'ff'", "status = x'ff'", "status = 'rumming'", "created_at_ms = 'x'",
     "created_at_ms = -9000000000000000", "updated_at_ms = 1e300", "epoch = x'ff'",
     "last_seq = 'x'", "events = 0.5", "version = x'ff'", "error = x'ff'", "wake_at_ms = 'x'",
     "labels = x'ff'"],
)  # fmt: skip
@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_a_row_of_other_types(
    damage: str, which: str, base: Base, crashy: ModuleType, tmp_path: Path
) -> None:
    """SQLite reads a row as it is: a flipped bit makes another type of a value."""
    run_id = next(iter(base.bodies if which == "finished" else base.interrupted))
    came = asyncio.run(_look(crashy, damaged_row(base, tmp_path, run_id, damage), base))
    if which == "interrupted" and damage.split()[0] in {"epoch", "updated_at_ms", "wake_at_ms"}:
        assert set(came) == {"200", "new 200"}  # whoever takes the run sets them anew
        return
    assert came["500 run-damaged"] + came["500 run-dead"] >= 2, came
    assert set(came) <= NOTICED | {"200", "new 200"}
    assert came["200"] >= 3 * (len(base.bodies) + len(base.interrupted) - 1)


@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_i18_a_run_whose_principal_is_damaged_is_nobodys(
    which: str, base: Base, crashy: ModuleType, tmp_path: Path
) -> None:
    """No client without a principal is shown what may be another's."""
    run_id = next(iter(base.bodies if which == "finished" else base.interrupted))
    damage = "principal = x'ff'"
    came = asyncio.run(_look(crashy, damaged_row(base, tmp_path, run_id, damage), base))
    assert came["404 run-not-found"] == 3, came
    assert set(came) == {"200", "new 200", "404 run-not-found"}


def test_an_unfinished_run_whose_row_can_be_changed_is_set_aside_for_good(
    base: Base, crashy: ModuleType, tmp_path: Path
) -> None:
    """Nobody tries it again at each sweep."""
    run_id = next(iter(base.interrupted))
    database = damaged_row(base, tmp_path, run_id, "created_at_ms = -9000000000000000")
    asyncio.run(_look(crashy, database, base))
    with closing(sqlite3.connect(database)) as stored:
        sql = "select status, error, attempts from runs where run_id = ?"
        assert stored.execute(sql, (run_id,)).fetchone() == ("dead", "damaged: its row", 1)


@pytest.mark.parametrize("damage", ["name = x'ff'", "created_at_ms = -9000000000000000"])
def test_of_a_damaged_unfinished_run_is_spoken_once(
    damage: str, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether its row can still be changed, or not; it is claimed once."""
    run_id = next(iter(base.interrupted))
    store = SQLiteStore(damaged_row(base, tmp_path, run_id, damage))

    async def main() -> list[str]:
        claimed: list[str] = []
        claim = store.claim

        async def counted(
            run_ids: Sequence[str], now_ms: int, *, dead: bool = False
        ) -> Sequence[RunRecord]:
            claimed.extend(run_ids)
            return await claim(run_ids, now_ms, dead=dead)

        store.claim = counted  # type: ignore[method-assign]
        async with world(store) as one:
            for _ in range(3):
                await one.recovery.sweep()
        return claimed

    assert asyncio.run(main()).count(run_id) == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.count(f"run {run_id} is set aside: damaged: its row") == 1
