"""Tool calls of MCP servers as runs: tasks and keyed calls, with kill -9 of the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client import ClientSession, advertise
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ElicitResult,
    EmptyResult,
    InputRequests,
    InputResponses,
)

from durable_endpoints.integrations.mcp import DurableClient
from durable_endpoints.integrations.mcp_tasks import (
    KEY_META,
    TASKS,
    CreatedTask,
    DetailedTask,
    Tasks,
    UpdateParams,
    UpdateTask,
    cancel_task,
    get_task,
    task_result,
    update_task,
)
from tests.crash.evidence import read_store
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.lives import LivesServer

pytestmark = pytest.mark.crash
PARTS = 12
LONG = 70  # of them take longer than a pause of the machine, at the end of which all is over
SUM = f"welcome: {sum(range(PARTS))}"


class Shop(LivesServer):
    """The server's process, and what its tools have done in all its lives."""

    def __init__(self, directory: Path) -> None:
        super().__init__("tests.llm.mcp_app:app", directory)

    def client(self, path: str = "/mcp", **options: Any) -> Client:
        return Client(self.url + path, **options)

    def with_tasks(self, path: str = "/mcp", **options: Any) -> Client:
        return self.client(path, extensions=[Tasks()], **options)

    def asked(self) -> Client:
        return self.with_tasks(elicitation_callback=answer)

    def ran(self, tag: str) -> list[str]:
        file = self.directory / "ran.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(tag).strip() for line in lines if line.split(" ")[0] == tag]

    async def has_run(self, tag: str, number: int) -> None:
        while len(self.ran(tag)) < number:
            await asyncio.sleep(0.002)

    async def killed(self, run_id: str) -> list[str]:
        """Kill and start; return the parts of a run that were durable in between."""
        await asyncio.to_thread(self.kill)
        stored = read_store(self.directory / "durable.db")[run_id].entries
        await asyncio.to_thread(self.start)
        return [entry.payload.decode() for entry in stored if entry.key.endswith(" part")]

    async def restart_soon(self) -> None:
        await asyncio.to_thread(self.kill)
        await asyncio.to_thread(self.start)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Shop(tmp_path_factory.mktemp("shop")) as one:
        yield one


@pytest.fixture(autouse=True)
def _running(shop: Shop) -> None:
    if not shop.running:
        shop.start()


def play(main: Callable[[], Any]) -> Any:
    async def in_time() -> Any:
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(in_time())


async def begun(session: ClientSession, tool: str, **arguments: Any) -> CreatedTask:
    found = await session.call_tool(tool, arguments, allow_claimed=True)
    assert isinstance(found, CreatedTask), found
    assert (found.status, found.ttl_ms, found.poll_interval_ms) == ("working", None, 20)
    return found


async def until(session: ClientSession, task_id: str, *status: str) -> DetailedTask:
    while (task := await get_task(session, task_id)).status not in status:
        await asyncio.sleep(0.02)
    return task


def text_of(result: Any) -> str:
    text: str = result.content[0].text
    return text


# --- tasks


def test_a_task_survives_every_kill(shop: Shop) -> None:
    async def main() -> None:
        for seen in (1, 4, 8, PARTS - 1):
            tag = f"kill{seen}"
            async with shop.with_tasks() as client:
                task = await begun(client.session, "add_up", tag=tag, parts=PARTS)
                await shop.has_run(tag, seen)
            kept = await shop.killed(task.task_id)
            assert text_of(await task_result(shop.with_tasks, task.task_id)) == SUM
            times = Counter(shop.ran(tag))
            assert set(times) == {str(number) for number in range(PARTS)}
            # What was not durable yet is done again, and nothing else.
            assert all(times[number] == 1 for number in kept), (kept, times)
            assert max(times.values()) <= 2
            await shop.restart_soon()
            async with shop.with_tasks() as client:
                done = await get_task(client.session, task.task_id)
                assert done.status == "completed" and done.created_at == task.created_at
                assert (done.result or {})["content"][0]["text"] == SUM
                assert len(shop.ran(tag)) == sum(times.values())

    play(main)


def test_a_server_that_is_away_is_waited_for(shop: Shop) -> None:
    async def main() -> None:
        async with shop.with_tasks() as client:
            task = await begun(client.session, "add_up", tag="away", parts=LONG)
        waiting = asyncio.create_task(task_result(shop.with_tasks, task.task_id))
        await shop.has_run("away", 4)
        await asyncio.to_thread(shop.kill)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await asyncio.to_thread(shop.start)
        assert text_of(await waiting) == f"welcome: {sum(range(LONG))}"
        await asyncio.to_thread(shop.kill)
        try:
            with pytest.raises((httpx2.TransportError, ExceptionGroup, MCPError)):
                await task_result(shop.with_tasks, task.task_id, patience=0.1)
        finally:
            await asyncio.to_thread(shop.start)

    play(main)


def test_a_quick_tool_is_answered_at_once(shop: Shop) -> None:
    async def main() -> None:
        async with shop.with_tasks() as client:
            before = len(await runs(shop, "MCP shop: quick"))
            for tries in range(1, 21):  # noqa: B007 - where the machine pauses it is not quick
                found = await client.session.call_tool("quick", {"tag": "q1"}, allow_claimed=True)
                if not isinstance(found, CreatedTask):
                    break
            assert text_of(found) == "done"
            # The whole of a slow one, by the client's own hand.
            slow = await client.call_tool("add_up", {"tag": "q2", "parts": PARTS})
            assert text_of(slow) == SUM
        assert len(await runs(shop, "MCP shop: quick")) == before + tries

    play(main)


def test_a_task_is_cancelled(shop: Shop) -> None:
    async def main() -> None:
        async with shop.with_tasks() as client:
            task = await begun(client.session, "trip", tag="c1", how="wait")
            await shop.has_run("c1", 1)
            await cancel_task(client.session, task.task_id)
            done = await until(client.session, task.task_id, "cancelled")
            assert done.result is None and done.error is None
            await cancel_task(client.session, task.task_id)
        assert shop.ran("c1") == ["booked", "unbooked"]
        await shop.restart_soon()
        async with shop.with_tasks() as client:
            assert (await get_task(client.session, task.task_id)).status == "cancelled"
        with pytest.raises(MCPError, match="was cancelled"):
            await task_result(shop.with_tasks, task.task_id)

    play(main)


def test_who_leaves_without_a_task_id_cancels(shop: Shop) -> None:
    async def main() -> None:
        async with shop.with_tasks() as client:
            calling = asyncio.create_task(client.call_tool("trip", {"tag": "l1", "how": "wait"}))
            await shop.has_run("l1", 1)
            calling.cancel()
            while shop.ran("l1") != ["booked", "unbooked"]:
                await asyncio.sleep(0.02)

    play(main)


def test_errors_are_those_of_a_plain_call(shop: Shop) -> None:
    async def main() -> None:
        async with shop.client() as plain, shop.with_tasks() as client:
            for tool, more in (("trip", {"how": "error"}), ("trip", {"how": 1}), ("nothing", {})):
                bare = await plain.call_tool(tool, {"tag": "e0", **more})
                found = await client.call_tool(tool, {"tag": "e1", **more})
                assert found.is_error and found.content == bare.content
            assert shop.ran("e0") == ["booked"]
            assert shop.ran("e1") == ["booked", "unbooked"]
            for tool, more, code in (
                ("trip", {"how": "protocol"}, -32050),
                ("refused", {}, -32051),
            ):
                with pytest.raises(MCPError) as bare_error:
                    await plain.call_tool(tool, {"tag": "e2", **more})
                with pytest.raises(MCPError) as error:
                    await client.call_tool(tool, {"tag": "e2", **more})
                assert error.value.error == bare_error.value.error
                assert error.value.code == code
        assert shop.ran("e2") == ["booked", "booked", "unbooked", "", ""]

    play(main)


def test_a_low_level_server(shop: Shop) -> None:
    async def main() -> None:
        path = "/low/mcp"
        async with shop.with_tasks(path) as client:
            task = await begun(client.session, "low", tag="low", parts=PARTS)
            failing = await begun(client.session, "low", fail=True)
            failed = await until(client.session, failing.task_id, "failed")
            assert failed.error is not None and failed.error.code == INTERNAL_ERROR
            assert failed.status_message == "the tool failed: ValueError"
            await shop.has_run("low", 3)
        kept = await shop.killed(task.task_id)
        found = await task_result(lambda: shop.with_tasks(path), task.task_id)
        assert text_of(found) == str(sum(range(PARTS)))
        times = Counter(shop.ran("low"))
        assert len(times) == PARTS and all(times[number] == 1 for number in kept)
        async with shop.with_tasks() as client:  # a task of another server is none of this one's
            with pytest.raises(MCPError, match="no task"):
                await get_task(client.session, task.task_id)

    play(main)


# --- questions


async def answer(_: Any, question: Any) -> ElicitResult:
    fields = question.requested_schema["properties"]
    content: dict[str, Any] = {"colour": "red"} if "colour" in fields else {"size": 7}
    return ElicitResult(action="accept", content=content)


async def given(asked: InputRequests) -> InputResponses:
    return {key: await answer(None, question.params) for key, question in asked.items()}


def test_a_task_asks_its_client(shop: Shop) -> None:
    async def main() -> None:
        async with shop.asked() as client:
            assert text_of(await client.call_tool("order", {"tag": "o0"})) == "7 red"
            # One after the other, each at once, before the run could leave memory again.
            task = (await begun(client.session, "order", tag="o2")).task_id
            asked = (await until(client.session, task, "input_required")).input_requests
            assert asked is not None and len(asked) == 2
            for key, one_answer in (await given(asked)).items():
                await update_task(client.session, task, {key: one_answer})
            await until(client.session, task, "completed")
            task = (await begun(client.session, "order", tag="o1")).task_id
            asked = (await until(client.session, task, "input_required")).input_requests
            assert asked is not None and len(asked) == 2
        await shop.restart_soon()
        async with shop.asked() as client:
            again = await until(client.session, task, "input_required")
            assert again.input_requests == asked
            one, other = list(asked)
            answers = await given(asked)
            wrong = UpdateParams(task_id=task, input_responses={one: {"action": "dance"}})
            request = UpdateTask(params=wrong)
            assert await refusal(client.session.send_request(request, EmptyResult)) == (
                INVALID_PARAMS
            )
            known = answers[one].model_dump(mode="json", by_alias=True)
            more = UpdateParams(task_id=task, input_responses={one: known, "x": {"any": 1}})
            await client.session.send_request(UpdateTask(params=more), EmptyResult)
            left = await until(client.session, task, "input_required")
            assert set(left.input_requests or {}) == {other}
        await shop.restart_soon()
        async with shop.asked() as client:
            # An answer that was given stands; one more is needed.
            declined: InputResponses = {one: ElicitResult(action="decline")}
            await update_task(client.session, task, declined)
            await update_task(client.session, task, {other: answers[other]})
            done = await until(client.session, task, "completed")
            assert (done.result or {})["content"][0]["text"] == "7 red"
            await update_task(client.session, task, answers)
        assert shop.ran("o1") == ["7"]

    play(main)


# --- keyed calls


def test_a_keyed_call_is_made_once(shop: Shop) -> None:
    async def main() -> None:
        meta = {KEY_META: "one"}
        arguments = {"tag": "k1", "parts": LONG}

        async def cut() -> None:
            async with shop.client() as client:
                await client.call_tool("add_up", arguments, meta=meta)

        calling = asyncio.create_task(cut())
        await shop.has_run("k1", 4)
        await shop.restart_soon()
        with pytest.raises((MCPError, ExceptionGroup)):
            await calling
        async with shop.client() as client:
            for _ in range(2):
                found = await client.call_tool("add_up", arguments, meta=meta)
                assert text_of(found) == f"welcome: {sum(range(LONG))}"
            with pytest.raises(MCPError, match="another call"):
                await client.call_tool("add_up", {"tag": "k1", "parts": 1}, meta=meta)
        assert max(Counter(shop.ran("k1")).values()) <= 2
        # Another user's key is another key.
        http = httpx2.AsyncClient(headers={"x-user": "eve"})
        transport = streamable_http_client(shop.url + "/mcp", http_client=http)
        async with http, Client(transport) as client:
            await client.call_tool("quick", {"tag": "k2"}, meta=meta)
        async with shop.client() as client:
            await client.call_tool("quick", {"tag": "k2"}, meta=meta)
            await client.call_tool("quick", {"tag": "k2"}, meta=meta)
        assert len(shop.ran("k2")) == 2

    play(main)


def test_calls_without_key_and_task_are_plain(shop: Shop) -> None:
    async def main() -> None:
        before = len(await runs(shop, "MCP shop: *"))
        async with shop.client() as client:
            assert text_of(await client.call_tool("quick", {"tag": "p1"})) == "done"
            await client.call_tool("unlisted", {"tag": "p2"}, meta={KEY_META: "p2"})
            await client.call_tool("unlisted", {"tag": "p2"}, meta={KEY_META: "p2"})
        async with shop.client(mode="legacy") as client:
            assert text_of(await client.call_tool("quick", {"tag": "p1"})) == "done"
        assert len(shop.ran("p1")) == len(shop.ran("p2")) == 2
        assert len(await runs(shop, "MCP shop: *")) == before

    play(main)


def test_a_keyed_call_of_an_older_client(shop: Shop) -> None:
    async def main() -> None:
        async with shop.client(mode="legacy") as client:
            for _ in range(2):
                found = await client.call_tool("quick", {"tag": "h1"}, meta={KEY_META: "h1"})
                assert text_of(found) == "done"
        assert len(shop.ran("h1")) == 1

    play(main)


def test_a_durable_client_and_a_durable_server(shop: Shop) -> None:
    """The server is killed while a run of ours waits for its tool, with and without tasks."""

    async def main() -> None:
        for connect, tag in ((shop.client, "d1"), (shop.with_tasks, "d2")):

            async def body(connect: Any = connect, tag: str = tag) -> Any:
                async with DurableClient(connect, name="shop") as client:
                    first = await client.call_tool("quick", {"tag": f"{tag}q"})
                    found = await client.call_tool("add_up", {"tag": tag, "parts": PARTS})
                    return [text_of(first), text_of(found)]

            async with world() as one:
                requests._BODY[:] = [body]
                run = await one.start(requests.play_body)
                await shop.has_run(tag, 5)
                await shop.restart_soon()
                assert await run.result() == ["done", SUM]
            assert len(shop.ran(f"{tag}q")) == 1
            assert max(Counter(shop.ran(tag)).values()) <= 2

    play(main)


# --- who may ask what


async def refusal(work: Any) -> int:
    with pytest.raises(MCPError) as caught:
        await work
    return caught.value.code


def test_what_is_refused(shop: Shop) -> None:
    async def main() -> None:
        async with shop.with_tasks() as client:
            task = (await begun(client.session, "trip", tag="r1", how="wait")).task_id
            assert await refusal(get_task(client.session, "nothing")) == INVALID_PARAMS
            assert await refusal(cancel_task(client.session, "nothing")) == INVALID_PARAMS
            assert await refusal(update_task(client.session, "nothing", {})) == INVALID_PARAMS
            assert text_of(await client.call_tool("guarded", {"tag": "x"})) == "x"
        async with shop.client() as client:
            missing = MISSING_REQUIRED_CLIENT_CAPABILITY
            assert await refusal(get_task(client.session, task)) == missing
            assert await refusal(cancel_task(client.session, task)) == missing
            assert await refusal(client.call_tool("guarded", {"tag": "x"})) == missing
        async with shop.client(mode="legacy", extensions=[advertise(TASKS)]) as client:
            assert await refusal(get_task(client.session, task)) == METHOD_NOT_FOUND
        http = httpx2.AsyncClient(headers={"x-user": "eve"})
        transport = streamable_http_client(shop.url + "/mcp", http_client=http)
        async with http, Client(transport, extensions=[Tasks()]) as client:
            assert await refusal(get_task(client.session, task)) == INVALID_PARAMS
            assert await refusal(cancel_task(client.session, task)) == INVALID_PARAMS
        async with shop.with_tasks() as client:
            assert (await get_task(client.session, task)).status == "working"
            await cancel_task(client.session, task)

    play(main)


def test_on_the_wire(shop: Shop) -> None:
    """The fields and headers of the extension's specification, by hand."""

    async def main() -> None:
        async with httpx.AsyncClient() as http:
            made = (await post(http, shop, "tools/call", "trip", {
                "name": "trip", "arguments": {"tag": "w1", "how": "wait"}
            })).json()["result"]  # fmt: skip
            assert made["resultType"] == "task" and made["ttlMs"] is None
            assert set(made) == {
                "resultType", "taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs",
                "pollIntervalMs", "_meta",
            }  # fmt: skip
            task = made["taskId"]
            named = await post(http, shop, "tasks/get", task, {"taskId": task})
            assert named.json()["result"]["resultType"] == "complete"
            assert named.json()["result"]["ttlMs"] is None
            for wrong in ("another", None):
                refused = await post(http, shop, "tasks/get", wrong, {"taskId": task})
                assert refused.status_code == 400
                assert refused.json()["error"]["code"] == HEADER_MISMATCH
            gone = await post(http, shop, "tasks/cancel", task, {"taskId": task})
            assert gone.json()["result"].keys() == {"resultType", "_meta"}
            run = await http.get(f"{shop.url}/_durable/runs/{task}")
            assert run.json()["name"] == "MCP shop: trip"

    play(main)


async def post(
    http: httpx.AsyncClient, shop: Shop, method: str, name: str | None, params: dict[str, Any]
) -> httpx.Response:
    version = "2026-07-28"
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    headers = {
        "accept": "application/json, text/event-stream", "mcp-protocol-version": version,
        "mcp-method": method, **({"mcp-name": name} if name else {}),
    }  # fmt: skip
    return await http.post(shop.url + "/mcp", json=body, headers=headers)


async def runs(shop: Shop, name: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{shop.url}/_durable/runs", params={"name": name, "limit": 200})
        found: list[dict[str, Any]] = answer.json()["runs"]
        return found
