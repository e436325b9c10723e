"""Readers through a suspension; suspended runs through kills, stops, cancels and deletes."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from durable_endpoints.client import DurableClient, Event
from tests.support.server import Server
from tests.surface.waiters import (
    PROXIED,
    accepted,
    entries,
    kinds,
    link_of,
    outcome,
    response_of,
    send,
    waiting,
)
from tests.surface.wire import (
    events_of,
    is_problem,
    noted,
    offset_of,
    run_of,
    until,
    until_noted,
    until_status,
)

SSE = {"accept": "text/event-stream"}
CONTROL = {"durable-events": "1"}
HEARTBEAT_S = "0.2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"WAITING_HEARTBEAT_S": HEARTBEAT_S}
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("rest"), env=env) as server:
        yield server
    assert "Traceback" not in server.log.read_text(), server.tail()


class Watched:
    """A stream that is read as far as something is seen in it."""

    def __init__(self, stream: httpx.Response) -> None:
        self.run_id = run_of(stream)
        self.shown = ""
        self._chunks = stream.iter_text()

    def until(self, text: str, times: int = 1) -> None:
        while self.shown.count(text) < times:
            self.shown += next(self._chunks)

    def rest(self) -> str:
        self.shown += "".join(self._chunks)
        return self.shown


@contextmanager
def watched(
    client: httpx.Client, method: str, path: str, headers: dict[str, str] | None = None
) -> Iterator[Watched]:
    with client.stream(method, path, headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        yield Watched(stream)


def stream_path(run_id: str) -> str:
    return f"/_durable/runs/{run_id}/stream"


def beats(text: str) -> int:
    return text.split("\n").count(": hb")


# --- readers


def test_a_reader_who_asked_is_told_and_stays(client: httpx.Client) -> None:
    with watched(client, "POST", "/stream", CONTROL) as reader:
        reader.until("durable.suspended")
        reader.until(": hb\n: hb\n")
        run = until_status(client, reader.run_id, "suspended")
        assert run["waiting"] == [{"kind": "signal", "name": "go", "until": None}]
        assert outcome(send(client, reader.run_id, json={"n": 1})) == "taken"
        events = events_of(reader.rest())
    assert [event.event for event in events] == [
        "durable.run", "word", "durable.suspended", "durable.resumed", "", "", "durable.done",
    ]  # fmt: skip
    assert events[2].data == '{"waiting":[{"kind":"signal","name":"go","until":null}]}'
    assert [event.data for event in events[4:6]] == ['{"n":1}', "end"]
    assert [offset_of(event) for event in events if event.id] == [1, 2, 3]
    assert events[6].data == '{"status":"completed","error":null}'


def test_a_stock_reader_sees_nothing_odd(client: httpx.Client) -> None:
    with watched(client, "POST", "/stream") as reader:
        reader.until(": hb\n: hb\n")
        send(client, reader.run_id, json=1)
        shown = reader.rest()
    assert "durable." not in shown
    events = events_of(shown)
    assert [(event.event, event.data) for event in events] == [
        ("word", "asked"), ("", "1"), ("", "end"),
    ]  # fmt: skip
    kept = client.get(stream_path(reader.run_id), headers=SSE)
    assert [(e.id, e.data) for e in events_of(kept.text)] == [(e.id, e.data) for e in events]
    assert ": hb" not in kept.text


def test_every_suspension_is_told_once(client: httpx.Client) -> None:
    with watched(client, "POST", "/stream?waits=3", CONTROL) as reader:
        for number in range(3):
            reader.until("event: durable.suspended", times=number + 1)
            send(client, reader.run_id, json=number)
        reader.rest()
    assert reader.shown.count("event: durable.suspended") == 3
    assert [e.data for e in events_of(reader.shown) if not e.event] == ["0", "1", "2", "end"]


def test_a_reader_comes_back_while_the_run_is_suspended(client: httpx.Client) -> None:
    run_id = waiting(client, "/stream")
    until_status(client, run_id, "suspended")
    with watched(client, "GET", stream_path(run_id), {**SSE, **CONTROL}) as first:
        first.until("durable.suspended")
        cursor = next(event.id for event in events_of(first.shown) if event.event == "word")
        with (
            watched(client, "GET", stream_path(run_id), {**SSE, "last-event-id": cursor}) as stock,
            watched(client, "POST", "/stream", {"last-event-id": cursor, **CONTROL}) as again,
        ):
            assert again.run_id == run_id
            again.until("durable.suspended")
            stock.until(": hb")
            send(client, run_id, json=7)
            rest = events_of(stock.rest())
            assert [event.data for event in rest] == ["7", "end"]
            assert [e.data for e in events_of(again.rest()) if e.id] == ["7", "end"]
            assert [e.data for e in events_of(first.rest()) if e.id] == ["asked", "7", "end"]
    done = client.get(stream_path(run_id), headers={**SSE, "last-event-id": rest[-1].id})
    assert done.status_code == 204


def test_a_reader_of_a_run_without_a_word_is_told_at_once(client: httpx.Client) -> None:
    """Suspended before its response began: its reader does not know yet what it will read."""
    run_id = waiting(client, "/json")
    until_status(client, run_id, "suspended")
    with watched(client, "GET", stream_path(run_id), {**SSE, **CONTROL}) as reader:
        began = datetime.now().astimezone()
        reader.until("durable.suspended")
        assert beats(reader.shown) == 0, "told with the first heartbeat only"
        assert (datetime.now().astimezone() - began).total_seconds() < 5
        send(client, run_id, json=1)
        events = events_of(reader.rest())
    assert [event.data for event in events if event.id] == ['{"got":1}']
    assert events[-1].data == '{"status":"completed","error":null}'


def test_a_response_in_one_piece_comes_when_it_is_there(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url, timeout=30) as first:

        async def main() -> httpx.Response:
            asking = asyncio.to_thread(first.post, "/json", params={"name": "whole"})
            task = asyncio.create_task(asking)
            run = await asyncio.to_thread(find, client, "whole")
            pending = client.get(f"/_durable/runs/{run}/response")
            assert pending.status_code == 202
            assert int(pending.headers["retry-after"]) >= 1
            assert pending.json()["status"] == "suspended"
            send(client, run, "whole", json=1)
            return await task

        answer = asyncio.run(main())
    assert (answer.status_code, answer.json()) == (200, {"got": 1})
    assert answer.headers["content-length"] == str(len(answer.content))
    assert client.get(f"/_durable/runs/{run_of(answer)}/response").json() == {"got": 1}


def find(client: httpx.Client, name: str) -> str:
    """Wait for a suspended run that waits for a signal of this name; return its id."""

    def found() -> str | None:
        runs = client.get("/_durable/runs", params={"status": "suspended"}).json()["runs"]
        return next((run["id"] for run in runs if run["waiting"][0]["name"] == name), None)

    return str(until(f"a run waits for {name}", found))


def test_a_generator_endpoint_and_its_dependency(client: httpx.Client, directory: Path) -> None:
    """The handler is dropped and begun anew: its dependencies are entered and left with it."""
    with watched(client, "POST", "/native") as reader:
        reader.until("resource")
        until_status(client, reader.run_id, "suspended")
        until_noted(directory, "resource closed")
        send(client, reader.run_id, json="tea")
        assert [e.data for e in events_of(reader.rest())] == [
            '{"word":"resource"}', '{"word":"tea"}',
        ]  # fmt: skip
    until_noted(directory, "resource closed", times=2)
    assert noted(directory, "resource open") == 2


def test_background_work_waits_behind_a_complete_response(
    client: httpx.Client, directory: Path
) -> None:
    answer = client.post("/background")
    assert answer.json() == {"accepted": True}
    run_id = run_of(answer)
    until_status(client, run_id, "suspended")
    # Its readers have everything: nobody is kept waiting.
    assert client.get(f"/_durable/runs/{run_id}/response").json() == {"accepted": True}
    told = client.get(stream_path(run_id), headers={**SSE, **CONTROL})
    assert events_of(told.text)[-1].event == "durable.done"
    send(client, run_id, json="tea")
    until_noted(directory, "background tea")
    until_status(client, run_id, "completed")


def test_our_client_reads_through_a_suspension(client: httpx.Client) -> None:
    async def main() -> None:
        async with (
            DurableClient(str(client.base_url)) as durable,
            durable.stream("POST", "/stream", params={"waits": "2"}) as run,
        ):
            got: list[str] = []
            async for item in run:
                assert isinstance(item, Event)
                got.append(item.data)
                if len(got) < 3:
                    number = len(got)
                    await asyncio.to_thread(until_status, client, str(run.run_id), "suspended")
                    await asyncio.to_thread(send, client, str(run.run_id), json=number)
            assert got == ["asked", "1", "2", "end"]
            assert run.status == "completed"

    asyncio.run(main())


def test_a_sleep_is_shown_and_never_early(client: httpx.Client) -> None:
    run_id = accepted(client, "/sleeps", params={"seconds": 3600})
    run = until_status(client, run_id, "suspended")
    assert run["waiting"][0]["kind"] == "timer"
    created, wake = (datetime.fromisoformat(run[name]) for name in ("created_at", "wake_at"))
    assert 3600 <= (wake - created).total_seconds() < 3630
    assert client.post(f"/_durable/runs/{run_id}/cancel").status_code == 202
    # The best of a few, for the machine may be busy with something else; none is early.
    late_s = [woken_late_s(client)]
    while min(late_s) >= 1.5 and len(late_s) < 3:
        late_s.append(woken_late_s(client))
    assert 0 <= min(late_s) < 1.5, late_s


def woken_late_s(client: httpx.Client) -> float:
    """Have a run sleep; return how long after its time it was at its end."""
    run_id = accepted(client, "/sleeps", params={"seconds": 1.2})
    assert response_of(client, run_id) == {"slept": "well"}
    run = client.get(f"/_durable/runs/{run_id}").json()
    created, ended = (datetime.fromisoformat(run[name]) for name in ("created_at", "updated_at"))
    (timer,) = (entry for entry in entries(client, run_id) if entry["kind"] == "timer")
    wake = datetime.fromtimestamp(json.loads(timer["payload"])["until"] / 1000, UTC)
    assert (wake - created).total_seconds() >= 1.2
    return (ended - wake).total_seconds()


# --- ends


def test_a_suspended_run_is_not_deleted_but_cancelled(client: httpx.Client) -> None:
    with watched(client, "POST", "/stream", CONTROL) as reader:
        reader.until("durable.suspended")
        run_id = reader.run_id
        is_problem(client.delete(f"/_durable/runs/{run_id}"), 409, "run-unfinished")
        cancelled = client.post(f"/_durable/runs/{run_id}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
        events = events_of(reader.rest())  # a clean end: there is nothing to come back for
        assert events[-1].data == '{"status":"cancelled","error":null}'
    assert client.post(f"/_durable/runs/{run_id}/cancel").status_code == 200
    is_problem(send(client, run_id), 409, "run-ended")
    is_problem(client.get(f"/_durable/runs/{run_id}/response"), 409, "run-cancelled")
    run = client.get(f"/_durable/runs/{run_id}").json()
    assert (run["status"], run["waiting"], run["wake_at"]) == ("cancelled", None, None)
    assert client.delete(f"/_durable/runs/{run_id}").status_code == 204
    is_problem(send(client, run_id), 410, "run-deleted")


def test_cancel_and_signal_at_once_have_one_end(client: httpx.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url = str(client.base_url)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            run_id = waiting(client, "/json")
            path = f"{url}/_durable/runs/{run_id}"
            posts = [pool.submit(httpx.post, f"{path}/{route}", timeout=30)
                     for route in ("signals/go", "cancel", "signals/go", "cancel")]  # fmt: skip
            answers = [post.result() for post in posts]
            assert {answer.status_code for answer in answers} <= {200, 202, 409}, answers
            run = until_status(client, run_id, "cancelled", "completed")
            ends = [kind for kind in kinds(client, run_id) if kind in ("cancelled", "completed")]
            assert ends == [run["status"]]


# --- processes


def test_suspended_runs_survive_kills(server: Server) -> None:
    """Killed while they wait, while a signal is kept, and right after one was answered 2xx."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        busy = accepted(client, "/busy", params={"hold": "later"})
        assert outcome(send(client, busy, json="kept")) == "kept"
        plain = waiting(client, "/approval", json={"then": "refund"})
        assert outcome(send(client, plain, "refund", json=7, headers=PROXIED)) == "kept"
        link = link_of(client, plain)
        short = waiting(client, "/json", params={"timeout": 0.3})  # it passes meanwhile
        long = waiting(client, "/json", params={"timeout": 600})
        with watched(client, "POST", "/stream?waits=2", CONTROL) as reader:
            reader.until("durable.suspended")
            server.kill()
            with pytest.raises(httpx.TransportError):
                reader.rest()
        server.start()
        one = reader.run_id
        cursor = next(event.id for event in events_of(reader.shown) if event.event == "word")
        headers = {**SSE, **CONTROL, "last-event-id": cursor}
        with watched(client, "GET", stream_path(one), headers) as again:
            again.until("durable.suspended")
            assert outcome(send(client, one, json=1)) == "taken"
            again.until("data: 1")
            server.kill()
        server.start()
        assert kinds(client, one).count("signal") == 1
        assert response_of(client, short) == {"got": "timeout go"}
        is_problem(send(client, plain, "refund", json=7), 422, "signal-refused")
        assert outcome(send(client, long, json=1)) == "taken"
        assert client.post(link, json={"approved": True, "by": "ann"}).status_code == 202
        server.kill()
        (server.directory / "later").touch()
        server.start()
        assert response_of(client, plain)["by"] == "ann"
        assert response_of(client, long) == {"got": 1}
        send(client, one, json=2)
        send(client, busy, json="second")
        assert response_of(client, busy) == {"got": ["kept", "second"]}
        until_status(client, one, "completed")
        body = client.get(f"/_durable/runs/{one}/response").text
        assert [event.data for event in events_of(body)] == ["asked", "1", "2", "end"]
        assert noted(server.directory, "link refund") == 1


def test_sigterm_cuts_the_readers_of_suspended_runs_and_stops(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        with watched(client, "POST", "/stream", CONTROL) as reader:
            reader.until("durable.suspended")
            server.signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):  # cut, so that the reader comes back
                reader.rest()
        assert server.wait(10) in (0, -signal.SIGTERM)
        server.start()
        run_id = reader.run_id
        assert client.get(f"/_durable/runs/{run_id}").json()["status"] == "suspended"
        assert client.get(f"/_durable/runs/{run_id}").json()["attempts"] == 1
        send(client, run_id, json=1)
        until_status(client, run_id, "completed")
    assert "Traceback" not in server.log.read_text(), server.tail()


def test_an_effect_cut_by_a_kill_waits_for_a_persons_word(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        run_id = accepted(client, "/pays", params={"order": "o-1"})
        until_noted(server.directory, "pay o-1")
        server.restart()
        until_status(client, run_id, "suspended")
        asked = client.get("/_durable/approvals").json()["approvals"]
        (listed,) = [one for one in asked if one["run_id"] == run_id]
        assert (listed["kind"], listed["name"]) == ("decision", "pay")
        assert "did it happen?" in listed["summary"]
        word = {"action": "result", "result": "it was paid"}
        assert outcome(send(client, run_id, "pay", json=word, headers=PROXIED)) == "kept"
        assert outcome(send(client, run_id, "pay", json=word)) == "taken"
        assert response_of(client, run_id) == {"paid": "it was paid"}
        assert noted(server.directory, "pay o-1") == 1


@pytest.mark.parametrize("stack", ["gzip,base,durable", "durable,base"])
def test_other_middlewares_stand_a_suspension(
    serve_waiting: Callable[..., Server], stack: str
) -> None:
    server = serve_waiting(WAITING_STACK=stack, WAITING_HEARTBEAT_S=HEARTBEAT_S)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/stream", "/native"):
            with watched(client, "POST", path, CONTROL) as reader:
                reader.until("durable.suspended")
                reader.until(": hb")
                send(client, reader.run_id, json="tea")
                shown = reader.rest()
                assert "tea" in shown
                assert events_of(shown)[-1].data == '{"status":"completed","error":null}'
        run_id = waiting(client, "/json")
        send(client, run_id, json=1)
        assert response_of(client, run_id) == {"got": 1}
        assert client.get("/plain").json() == {"plain": True}
    assert "Traceback" not in server.log.read_text(), server.tail()
