"""Coming back: from every offset, in every way a client may ask, and with every wrong cursor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.surface.wire import (
    Asked,
    Event,
    events_of,
    is_problem,
    offset_of,
    run_of,
    until_status,
)

SSE = {"accept": "text/event-stream"}
KINDS = ("native", "starlette", "hand")


def finished(client: httpx.Client, path: str, **asked: Any) -> tuple[str, str]:
    """Make a run; return its id and what its first reader saw."""
    answer = client.get(path, params=asked)
    run_id = run_of(answer)
    until_status(client, run_id, "completed")
    return run_id, answer.text


def resumed(client: httpx.Client, run_id: str, cursor: str, **more: str) -> httpx.Response:
    return client.get(
        f"/_durable/runs/{run_id}/stream", headers={"last-event-id": cursor, **more}
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_from_every_offset_of_a_finished_stream(client: httpx.Client, kind: str) -> None:
    run_id, text = finished(client, f"/events/{kind}", n=7)
    events = events_of(text)
    assert [offset_of(event) for event in events] == list(range(1, 8))
    for place, event in enumerate(events[:-1]):
        for answer in (
            resumed(client, run_id, event.id),
            client.get(f"/_durable/runs/{run_id}/stream", params={"after": event.id}, headers=SSE),
            client.get(
                f"/_durable/runs/{run_id}/stream",
                params={"after": offset_of(event)}, headers=SSE,
            ),
            client.get(f"/events/{kind}", headers={"last-event-id": event.id}),
        ):  # fmt: skip
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert events_of(answer.text) == events[place + 1 :]
            assert text.endswith(answer.text)  # byte for byte
    head = client.get(f"/_durable/runs/{run_id}/stream", params={"after": 0}, headers=SSE)
    assert head.text == text
    whole = client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
    assert whole.text == text


@pytest.mark.parametrize("kind", KINDS)
def test_from_every_offset_while_it_streams(
    client: httpx.Client, directory: Path, kind: str
) -> None:
    name = f"streams-{kind}"
    asked: Asked = {"n": 6, "hold": name, "at": 4}
    with client.stream("GET", f"/events/{kind}", params=asked) as first:
        run_id = run_of(first)
        shown = ""
        chunks = first.iter_text()
        while len(events_of(shown)) < 4:
            shown += next(chunks)
        events = events_of(shown)
        streams = [
            client.stream(
                "GET", f"/_durable/runs/{run_id}/stream", headers={"last-event-id": event.id}
            )
            for event in events
        ]
        answers = [stream.__enter__() for stream in streams]
        try:
            begun = [answer.iter_text() for answer in answers]
            early = [
                next(chunks) if place < 3 else ""  # the last has nothing to read yet
                for place, chunks in enumerate(begun)
            ]
            (directory / name).touch()
            shown += "".join(chunks)
            for place, (seen, more) in enumerate(zip(early, begun, strict=True)):
                got = events_of(seen + "".join(more))
                assert got == events_of(shown)[place + 1 :]
        finally:
            for stream in streams:
                stream.__exit__(None, None, None)
    assert len(events_of(shown)) == 6


def test_leaving_in_mid_stream_and_coming_back(client: httpx.Client, directory: Path) -> None:
    asked: Asked = {"n": 6, "hold": "left", "at": 2}
    with client.stream("GET", "/events/starlette", params=asked) as first:
        run_id = run_of(first)
        shown = ""
        for chunk in first.iter_text():
            shown += chunk
            if len(events_of(shown)) == 2:
                break
    (directory / "left").touch()  # nobody reads: the run goes on all the same
    until_status(client, run_id, "completed")
    rest = resumed(client, run_id, events_of(shown)[-1].id)
    assert [event.data for event in events_of(shown + rest.text)] == [
        f"word {number}" for number in range(6)
    ]


def test_a_post_with_our_id_resumes(client: httpx.Client) -> None:
    first = client.post("/events/starlette", params={"n": 4}, json={"any": "body"})
    run_id = run_of(first)
    events = events_of(first.text)
    again = client.post(
        "/events/starlette", params={"n": 4}, json={"any": "body"},
        headers={"last-event-id": events[1].id},
    )  # fmt: skip
    assert run_of(again) == run_id
    assert events_of(again.text) == events[2:]


def test_the_header_beats_the_query(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/hand", n=4)
    events = events_of(text)
    answer = client.get(
        f"/_durable/runs/{run_id}/stream", params={"after": 1},
        headers={"last-event-id": events[2].id},
    )  # fmt: skip
    assert events_of(answer.text) == events[3:]


def test_at_the_end_there_is_nothing_to_come_back_for(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/hand")
    last = events_of(text)[-1]
    for answer in (
        resumed(client, run_id, last.id),
        client.get("/events/hand", headers={"last-event-id": last.id}),
        client.get(f"/_durable/runs/{run_id}/stream", params={"after": offset_of(last)}),
    ):
        assert (answer.status_code, answer.content) == (204, b"")


def test_an_apps_own_ids_are_kept_and_are_cursors(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/own")
    events = events_of(text)
    assert [event.id for event in events] == [f"own-{number}" for number in range(5)]
    for place, event in enumerate(events[:-1]):
        assert events_of(resumed(client, run_id, event.id).text) == events[place + 1 :]
    assert resumed(client, run_id, "own-4").status_code == 204
    # On the app's own route its own ids are the app's own affair.
    answer = client.get("/events/own", headers={"last-event-id": "own-2"})
    assert run_of(answer) != run_id


def test_control_events_for_those_who_ask(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/hand")
    for asked in (
        {"headers": {"durable-events": "1", **SSE}},
        {"params": {"durable_events": "1"}},
    ):
        answer = client.get(f"/_durable/runs/{run_id}/stream", **asked)  # type: ignore[arg-type]
        events = events_of(answer.text)
        assert events[0] == Event("", "durable.run", f'{{"run_id":"{run_id}"}}')
        assert events[-1] == Event("", "durable.done", '{"status":"completed","error":null}')
        assert events[1:-1] == events_of(text)
    at_end = resumed(client, run_id, events_of(text)[-1].id, **{"durable-events": "1"})
    assert [event.event for event in events_of(at_end.text)] == ["durable.run", "durable.done"]
    first = client.get("/events/hand", headers={"durable-events": "1"})
    assert [event.event for event in events_of(first.text)][::6] == ["durable.run", "durable.done"]
    assert client.get("/text", headers={"durable-events": "1"}).text.startswith("word 0\n")


def test_a_body_that_is_no_event_stream_is_wrapped_or_raw(client: httpx.Client) -> None:
    run_id, text = finished(client, "/text", n=4)
    assert text == "word 0\nword 1\nword 2\nword 3\n"
    raw = client.get(f"/_durable/runs/{run_id}/stream")
    assert raw.text == text
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    wrapped = client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
    assert wrapped.headers["content-type"].startswith("text/event-stream")
    events = events_of(wrapped.text)
    assert "".join(event.data for event in events) == text
    for place, event in enumerate(events[:-1]):
        again = resumed(client, run_id, event.id, **SSE)
        assert events_of(again.text) == events[place + 1 :]
        after = client.get(f"/_durable/runs/{run_id}/stream", params={"after": offset_of(event)})
        assert after.text == "".join(event.data for event in events[place + 1 :])


def test_bytes_are_wrapped_as_bytes(client: httpx.Client) -> None:
    answer = client.post("/echo", content=b"\xff\x00\r\nraw")
    run_id = run_of(answer)
    until_status(client, run_id, "completed")
    assert answer.content == b"\xff\x00\r\nraw"
    wrapped = events_of(client.get(f"/_durable/runs/{run_id}/stream", headers=SSE).text)
    assert [event.event for event in wrapped] == ["durable.bytes"]


# --- wrong cursors


@pytest.mark.parametrize(
    "cursor",
    [
        "x", "1-2", "-1", "1.5", "٣", "9" * 12, "a" * 5000, "{}:1-00000000", "{}:1", "{}:-1-0000",
        "{run}:1-0000", "{run}:1-00000000000", "{run}:1-zzzzzzzz", "{run}:99999999999-00000000",
        "00000000-0000-7000-8000-000000000000:1-00000000", "own-1", "id with spaces", "\U0001f600",
    ],
)  # fmt: skip
def test_a_malformed_cursor_is_a_400(client: httpx.Client, cursor: str) -> None:
    run_id, _ = finished(client, "/events/hand")
    cursor = cursor.replace("{run}", run_id)
    answer = client.get(f"/_durable/runs/{run_id}/stream", params={"after": cursor}, headers=SSE)
    is_problem(answer, 400, "malformed-cursor")
    if cursor.isascii():
        is_problem(resumed(client, run_id, cursor), 400, "malformed-cursor")


def test_a_cursor_beyond_the_end_is_a_409(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/hand")
    last = events_of(text)[-1]
    for cursor in ("6", "999999999", f"{run_id}:6-{last.id[-8:]}"):
        is_problem(resumed(client, run_id, cursor), 409, "cursor-ahead")


def test_a_cursor_ahead_of_a_running_stream_is_a_409(client: httpx.Client, directory: Path) -> None:
    asked: Asked = {"hold": "ahead", "at": 1}
    with client.stream("GET", "/events/hand", params=asked) as stream:
        run_id = run_of(stream)
        next(stream.iter_text())
        is_problem(resumed(client, run_id, "4"), 409, "cursor-ahead")
        (directory / "ahead").touch()


def test_a_cursor_of_another_history_is_a_409(client: httpx.Client) -> None:
    run_id, text = finished(client, "/events/hand")
    for event in events_of(text):
        wrong = event.id[:-8] + f"{int(event.id[-8:], 16) ^ 1:08x}"
        is_problem(resumed(client, run_id, wrong), 409, "history-diverged")
        answer = client.get("/events/hand", headers={"last-event-id": wrong})
        is_problem(answer, 409, "history-diverged")


def test_a_cursor_of_another_run_is_a_400(client: httpx.Client) -> None:
    run_id, _ = finished(client, "/events/hand")
    _, other = finished(client, "/events/hand")
    is_problem(resumed(client, run_id, events_of(other)[0].id), 400, "malformed-cursor")


def test_our_id_of_an_unknown_run_on_an_apps_route_is_a_404(client: httpx.Client) -> None:
    cursor = "0198f000-0000-7000-8000-000000000000:1-00000000"
    answer = client.get("/events/hand", headers={"last-event-id": cursor})
    is_problem(answer, 404, "run-not-found")


def test_a_foreign_last_event_id_is_the_apps_own_affair(client: httpx.Client) -> None:
    answer = client.get("/events/hand", headers={"last-event-id": "42"})
    assert [event.data for event in events_of(answer.text)] == [f"word {i}" for i in range(5)]
