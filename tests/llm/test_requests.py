"""What a run does to its requests: retries, effects, leaving early, secrets, the rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from durable_endpoints import NotDurable, RateLimit, Retry, durable, emit, step
from durable_endpoints.errors import ControlSignal
from durable_endpoints.llm import DefaultRule, DurableTransport, durable_client
from durable_endpoints.llm.answers import arguments_of
from durable_endpoints.records import Entry, Kind
from tests.engine.worlds import World, world
from tests.llm.conftest import Provider
from tests.support.server import TCPProxy

ASK: Any = [{"role": "user", "content": "say something"}]
QUICK = Retry(initial=0.01, jitter=0)
_BODY: list[Callable[[], Awaitable[Any]]] = []


@durable
async def play_body() -> Any:
    return await _BODY[0]()


async def run(one: World, body: Callable[[], Awaitable[Any]]) -> tuple[Any, list[Entry]]:
    """Run it as a run; return its result and its journal."""
    _BODY[:] = [body]
    started = await one.start(play_body)
    async with asyncio.timeout(20):
        ended = await one.ended_for_good(started.id)
        return await ended.result(), await one.entries(started.id)


_OPEN: list[Any] = []


def client_for_tests(**options: Any) -> Any:
    """A durable client that `play` closes."""
    _OPEN.append(durable_client(llm_hosts=["127.0.0.1:*"], **options))
    return _OPEN[-1]


def play(main: Callable[[], Awaitable[Any]]) -> Any:
    async def closing() -> Any:
        try:
            return await main()
        finally:
            for client in _OPEN:
                await client.aclose()
            _OPEN.clear()

    return asyncio.run(closing())


def sdk(url: str, **options: Any) -> openai.AsyncOpenAI:
    """The library as it is, with its own two retries."""
    retry = options.pop("retry", QUICK)
    client = durable_client(llm_hosts=["127.0.0.1:*"], retry=retry, **options)
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-secret", http_client=client)


def claude(url: str) -> anthropic.AsyncAnthropic:
    client = durable_client(llm_hosts=["127.0.0.1:*"], retry=QUICK)
    return anthropic.AsyncAnthropic(base_url=url, api_key="sk-secret", http_client=client)


def kinds(entries: list[Entry]) -> list[str]:
    return [entry.kind.name for entry in entries]


# --- retries


def test_the_runtime_retries_and_the_library_does_not(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                model = "m?fail=429&times=2&after=0.05"
                answer = await client.chat.completions.create(model=model, messages=ASK)
                return answer.choices[0].message.content

            found, entries = await run(one, body)
            assert found == "w0 w1 w2 "
            assert kinds(entries).count("ATTEMPT") == 2
            await client.close()

    asyncio.run(main())
    seen = provider.counted()
    assert [entry["end"] for entry in seen] == ["refused 429", "refused 429", "whole"]
    assert seen[1]["at"] - seen[0]["at"] >= 0.05
    assert {entry["headers"]["x-stainless-retry-count"] for entry in seen} == {"0"}


@pytest.mark.parametrize("model", ["m?fail=500", "m?fail=429", "m?fail=503&after=0"])
def test_refusals_are_not_retried_twice(model: str, provider: Provider) -> None:
    async def main() -> Any:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                try:
                    await client.chat.completions.create(model=model, messages=ASK)
                except openai.APIStatusError as error:
                    return [type(error).__name__, error.status_code, error.body, error.request_id]

            found, _ = await run(one, body)
            await client.close()
            return found

    name = {"m?fail=429": "RateLimitError"}.get(model, "InternalServerError")
    body = {"message": "no", "type": "t", "param": None, "code": "c"}
    assert asyncio.run(main()) == [name, int(model[7:10]), body, "req_1"]
    assert len(provider.counted()) == 3


def test_a_dead_provider_is_not_asked_twice_as_often(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one, TCPProxy(provider.port) as proxy:
            proxy.refusing = True
            client = sdk(proxy.url)

            async def body() -> Any:
                found = []
                for _ in range(2):  # a second call of the same name is a call of its own
                    try:
                        await client.chat.completions.create(model="m", messages=ASK)
                    except openai.APIConnectionError as error:
                        found.append(type(error.__cause__).__name__)
                return found

            found, entries = await run(one, body)
            assert found == ["ReadError"] * 2
            assert proxy.connections == 6
            assert kinds(entries).count("STEP_FAILED") == 2
            await client.close()

    asyncio.run(main())


def test_the_library_retries_if_the_runtime_does_not(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url, retry=None)

            async def body() -> Any:
                model = "m?fail=500&times=1"
                answer = await client.chat.completions.create(model=model, messages=ASK)
                return answer.id

            assert (await run(one, body))[0] == "chatcmpl-1"
            await client.close()

    asyncio.run(main())
    assert [e["headers"]["x-stainless-retry-count"] for e in provider.counted()] == ["0", "1"]


def test_outside_a_run_the_client_is_a_plain_one(provider: Provider) -> None:
    async def main() -> Any:
        client = sdk(provider.url)
        stream = await client.chat.completions.create(model="m?n=3", messages=ASK, stream=True)
        found = [chunk.choices[0].delta.content async for chunk in stream]
        answer = await client.chat.completions.create(model="m?fail=500&times=1", messages=ASK)
        await client.close()
        return found, answer.id

    assert asyncio.run(main()) == (["", "w0 ", "w1 ", "w2 ", None], "chatcmpl-1")
    assert provider.counted()[-1]["headers"]["x-stainless-retry-count"] == "1"


def test_a_rate_limit_holds_over_all_calls(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url, rate_limit=RateLimit("llm", concurrent=1))

            async def body() -> Any:
                async def ask() -> None:
                    await client.chat.completions.create(model="m?wait=60", messages=ASK)

                await asyncio.gather(*(ask() for _ in range(3)))

            await run(one, body)
            await client.close()

    asyncio.run(main())
    at = sorted(entry["at"] for entry in provider.counted())
    assert min(at[1] - at[0], at[2] - at[1]) >= 0.055


def test_a_refusal_holds_back_the_other_calls(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url, rate_limit=RateLimit("shared", limit=1000))

            async def body() -> Any:
                async def ask(model: str) -> None:
                    await client.chat.completions.create(model=model, messages=ASK)

                async def later() -> None:
                    await refused(one)
                    await ask("m?key=other")

                await asyncio.gather(ask("m?fail=429&times=1&after=0.4"), later())

            await run(one, body)
            await client.close()

    asyncio.run(main())
    at = [entry["at"] for entry in provider.counted()]
    assert len(at) == 3 and at[1] - at[0] >= 0.38, "one of them did not wait"


# --- effects


def test_an_effect_has_a_key_and_a_durable_intent(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = durable_client()

            async def body() -> Any:
                answer = await client.post(provider.url + "/orders", json={"what": 1})
                return [answer.json()["order"], answer.status_code, answer.headers["x-echo"]]

            found, entries = await run(one, body)
            key, status, echo = found
            assert (status, echo, len(key)) == (200, "yes", 40)
            assert kinds(entries)[1:3] == ["INTENT", "STEP"]
            await client.aclose()

    asyncio.run(main())
    assert len(provider.counted()) == 1


def test_an_effect_is_made_again_with_the_same_key(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = durable_client()

            async def body() -> Any:
                answer = await client.post(provider.url + "/orders?model=m?wait=3000", json={})
                return answer.json()["order"]

            _BODY[:] = [body]
            started = await one.start(play_body)
            await until(lambda: len(provider.counted()) == 1)
            await one.crash()
            await one.boot()
            ended = await one.ended_for_good(started.id)
            found = await ended.result()
            keys = {entry["headers"]["idempotency-key"] for entry in provider.counted()}
            assert keys == {found}
            assert len(provider.counted()) == 2
            await client.aclose()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def refused(one: World) -> None:
    """Wait until the one run of a world has heard that a request of it was refused."""
    async with asyncio.timeout(20):
        while True:
            for run_id in list(one.engine.runs):
                if "ATTEMPT" in kinds(await one.entries(run_id)):
                    return
            await asyncio.sleep(0.005)


# --- leaving


@asynccontextmanager
async def streaming(one: World, provider: Provider) -> AsyncIterator[Any]:
    """A run in the middle of an answer."""
    client = sdk(provider.url)
    got: list[str] = []

    async def body() -> Any:
        model = "m?n=2000&pace=20"
        stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
        async for chunk in stream:
            got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - looked at meanwhile

    _BODY[:] = [body]
    started = await one.start(play_body)
    await until(lambda: len(got) > 5)
    yield started
    await until(lambda: provider.counted()[0]["end"] == "closed")
    words = provider.counted()[0]["words"]
    # What some seconds bring: more of them would take the rest of a minute.
    assert words < len(got) + 200, "the answer was paid for after it had been stopped"
    await client.close()


def test_cancel_closes_the_upstream_and_keeps_the_text(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one, streaming(one, provider) as started:
            await started.cancel()
            await one.ended_for_good(started.id)
            entries = await one.entries(started.id)
            assert entries[-1].kind == Kind.CANCELLED
            kept = b"".join(entry.payload for entry in entries if entry.kind == Kind.ITEM)
            assert kept.count(b"data: ") > 5  # an item may hold several words

    asyncio.run(main())


def test_drain_closes_the_upstream(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one, streaming(one, provider):
            await one.engine.drain(0)

    asyncio.run(main())


def test_an_answer_is_closed_as_soon_as_it_is_left(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client, gate, got = sdk(provider.url), asyncio.Event(), []

            async def body() -> Any:
                model = "m?n=2000&pace=20"
                stream = await client.chat.completions.create(
                    model=model, messages=ASK, stream=True
                )
                async with stream:
                    async for chunk in stream:
                        got.append(chunk)
                        if len(got) == 3:
                            break
                await gate.wait()

            _BODY[:] = [body]
            started = await one.start(play_body)
            await until(lambda: provider.counted()[-1:] != [] and len(got) == 3)
            await until(lambda: provider.counted()[0]["end"] == "closed")
            gate.set()
            await one.ended_for_good(started.id)
            await client.close()

    asyncio.run(main())


def test_an_answer_is_closed_as_soon_as_it_is_given_up(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client, gate = sdk(provider.url), asyncio.Event()
            kept = []

            async def body() -> Any:
                stream = await client.chat.completions.create(
                    model="m?n=2000&pace=20", messages=ASK, stream=True
                )
                kept.append(stream)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        async for _ in stream:
                            pass
                await gate.wait()

            _BODY[:] = [body]
            started = await one.start(play_body)
            await until(lambda: [e["end"] for e in provider.counted()] == ["closed"])
            gate.set()
            await one.ended_for_good(started.id)
            await client.close()

    asyncio.run(main())


def test_what_a_handler_leaves_behind_is_closed_with_the_run(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)
            kept = []

            async def body() -> Any:
                model = "m?n=2000&pace=20"
                stream = await client.chat.completions.create(
                    model=model, messages=ASK, stream=True
                )
                kept.append(stream)
                async for _ in stream:
                    break
                return "enough"

            assert (await run(one, body))[0] == "enough"
            await until(lambda: provider.counted()[0]["end"] == "closed")
            await client.close()

    asyncio.run(main())


# --- crashes


async def again_after(
    one: World, body: Callable[[], Awaitable[Any]], when: Callable[[], bool]
) -> Any:
    """Run it, end the process when it is time, go on; return the result."""
    _BODY[:] = [body]
    started = await one.start(play_body)
    await until(when)
    await one.engine.log.flush()
    await one.crash()
    await one.boot()
    async with asyncio.timeout(20):
        return await (await one.ended_for_good(started.id)).result()


def test_an_answer_made_again_has_the_encoding_that_it_had(provider: Provider) -> None:
    async def main() -> Any:
        async with world() as one:
            client, got = sdk(provider.url), []

            async def body() -> Any:
                found = []
                stream = await client.chat.completions.create(
                    model="m?n=60&pace=20&gzip=again", messages=ASK, stream=True
                )
                async for chunk in stream:
                    got.append(chunk)
                    found.append(chunk.choices[0].delta.content or "")
                    if len(got) == 4:  # the first process comes no further
                        await asyncio.Event().wait()
                return "".join(found)

            found = await again_after(one, body, lambda: len(got) > 3)
            await client.close()
            return found

    assert asyncio.run(main()) == "".join(f"w{n} " for n in range(60))
    assert [e["headers"]["accept-encoding"] for e in provider.counted()][1] == "identity"


def test_a_complete_answer_is_complete_whatever_its_connection_does(provider: Provider) -> None:
    async def main() -> Any:
        async with world() as one:
            client, gate, got = sdk(provider.url), asyncio.Event(), []

            async def body() -> Any:
                stream = await client.chat.completions.create(
                    model="m?n=4&linger=400", messages=ASK, stream=True
                )
                got.append([chunk.choices[0].delta.content or "" async for chunk in stream])
                await gate.wait()
                return "".join(got[-1])

            _BODY[:] = [body]
            started = await one.start(play_body)
            await until(lambda: bool(got))
            await one.engine.log.flush()
            await one.crash()
            gate.set()
            await one.boot()
            found = await (await one.ended_for_good(started.id)).result()
            await client.close()
            return found

    assert asyncio.run(main()) == "w0 w1 w2 w3 "
    assert len(provider.counted()) == 1


def test_the_end_is_recorded_with_the_last_piece(provider: Provider) -> None:
    """However the consumer leaves after it."""

    async def main() -> None:
        async with world() as one:
            client = durable_client(llm_hosts=["127.0.0.1:*"])
            chat, responses = "/v1/chat/completions", "/v1/responses"
            kept = []

            async def body() -> None:
                for path, last in ((chat, b"[DONE]"), (responses, b"response.completed")):
                    asked = {"model": "m?n=3&pace=5", "messages": ASK, "input": "x", "stream": True}
                    response = await client.send(
                        client.build_request("POST", provider.url + path, json=asked), stream=True
                    )
                    kept.append(response)
                    async for piece in response.aiter_raw():
                        if last in piece:
                            break

            _, entries = await run(one, body)
            ends = [n for n, kind in enumerate(kinds(entries)) if kind == "STREAM_END"]
            assert len(ends) == 2
            assert all(kinds(entries)[n - 1] == "ITEM" for n in ends)
            assert not [e for e in entries if e.kind == Kind.STREAM_END and e.payload == b"closed"]
            for response in kept:
                await response.aclose()
            await client.aclose()

    asyncio.run(main())


def test_a_connection_is_used_again(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one, TCPProxy(provider.port) as proxy:
            client = sdk(proxy.url)
            pool = client._client._transport._inner._pool  # type: ignore[attr-defined]

            async def body() -> None:
                for _ in range(4):
                    stream = await client.chat.completions.create(
                        model="m?n=3&pace=2", messages=ASK, stream=True
                    )
                    async for _ in stream:
                        pass
                    # The end of the body comes a moment behind the last event.
                    await until(lambda: all(one.is_idle() for one in pool.connections))

            await run(one, body)
            assert proxy.connections == 1
            await client.close()

    asyncio.run(main())


def test_half_of_a_large_json_answer_is_nothing(provider: Provider) -> None:
    """Something was shown while it came, so a stream would be interrupted: this is none."""

    async def main() -> Any:
        async with world() as one:
            client = sdk(provider.url)

            async def show() -> None:
                with suppress(ControlSignal):  # when the process is gone
                    for number in range(1000):
                        emit(f"{number}")
                        await asyncio.sleep(0.02)

            async def body() -> Any:
                showing = asyncio.create_task(show())
                answer = await client.chat.completions.with_raw_response.create(
                    model="m?pad=2000000&pace=400", messages=ASK
                )
                showing.cancel()
                return len(answer.content)

            _BODY[:] = [body]
            started = await one.start(play_body)
            while "ITEM" not in (seen := kinds(await one.entries(started.id))) or (
                "EMIT" not in seen[seen.index("ITEM") :]
            ):
                await asyncio.sleep(0.005)
            await one.crash()
            await one.boot()
            found = await (await one.ended_for_good(started.id)).result()
            await client.close()
            return found

    assert asyncio.run(main()) > 2_000_000
    assert len(provider.counted()) == 2


# --- what is recorded


def test_secrets_are_not_recorded(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)
            cookies = []

            async def body() -> Any:
                raw = await client.chat.completions.with_raw_response.create(
                    model="m", messages=ASK, extra_query={"key": "sk-secret", "token": "sk-secret"}
                )
                cookies.append(raw.headers.get("set-cookie"))
                return raw.headers.get("x-request-id")

            found, entries = await run(one, body)
            assert found == "req_1"
            assert cookies == ["session=secret"]
            assert not [entry for entry in entries if b"secret" in entry.payload + entry.args]
            await client.close()

    asyncio.run(main())


def test_a_fast_answer_is_few_entries(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                stream = await client.chat.completions.create(
                    model="m?n=500", messages=ASK, stream=True
                )
                return len([chunk async for chunk in stream])

            found, entries = await run(one, body)
            assert found == 502
            assert len(entries) < 250
            assert kinds(entries)[-2:] == ["STREAM_END", "COMPLETED"]
            await client.close()

    asyncio.run(main())


def test_other_arguments_diverge(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)
            gate, asked = asyncio.Event(), []

            async def body() -> Any:
                asked.append(f"question {len(asked)}")
                message: Any = {"role": "user", "content": asked[-1]}
                await client.chat.completions.create(model="m", messages=[message])
                await gate.wait()

            _BODY[:] = [body]
            started = await one.start(play_body)
            await until(lambda: len(provider.counted()) == 1)
            await until(lambda: one.engine.runs[started.id].durable_seq >= 1)
            await one.crash()
            gate.set()
            await one.boot()
            ended = await one.ended(started.id)
            assert ended.status == "diverged"
            await client.close()

    asyncio.run(main())
    assert len(provider.counted()) == 1


def test_what_is_compared_at_a_replay() -> None:
    def of(body: Any, url: str = "https://x/y", **options: Any) -> Any:
        return arguments_of(httpx.Request("POST", url, json=body, **options))

    same = of({"model": "m", "prompt_cache_key": "run-1", "input": [1]})
    assert same == of({"input": [1], "model": "m", "prompt_cache_key": "run-2"})
    assert same != of({"model": "m", "input": [2]})
    assert same != of({"model": "m", "input": [1]}, url="https://x/z")
    assert of({}, url="https://u:pw@x/y?key=1&a=2") == of({}, url="https://x/y?key=2&a=2")
    form = httpx.Request("POST", "https://x/y", files={"a": b"1"})
    assert arguments_of(form) == arguments_of(
        httpx.Request("POST", "https://x/y", files={"a": b"1"})
    )
    large = of({"input": "x" * 100_000})
    assert large[2].keys() == {"bytes", "crc32"} and large != of({"input": "y" * 100_000})


# --- where it does not apply


def test_inside_a_step_the_client_is_a_plain_one(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            @step
            async def ask() -> str:
                answer = await client.chat.completions.create(model="m", messages=ASK)
                return str(answer.id)

            found, entries = await run(one, ask)
            assert found == "chatcmpl-1"
            assert kinds(entries) == ["STARTED", "STEP", "COMPLETED"]
            await client.close()

    asyncio.run(main())


def test_another_thread_is_told_so(provider: Provider) -> None:
    def ask() -> str:
        async def main() -> str:
            async with durable_client(llm_hosts=["127.0.0.1"]) as client:
                return str((await client.get(provider.url + "/health")).text)

        return asyncio.run(main())

    async def main() -> None:
        async with world() as one:

            async def body() -> Any:
                try:
                    return await asyncio.to_thread(ask)
                except NotDurable as error:
                    return str(error)

            found, _ = await run(one, body)
            assert "on the server's event loop" in found

    asyncio.run(main())


def test_the_rule() -> None:
    rule = DefaultRule(["models.internal", "localhost:8080"])

    def of(method: str, url: str, **headers: str) -> str:
        return rule(httpx.Request(method, url, headers=headers))

    assert of("POST", "https://api.openai.com/v1/responses") == "step"
    assert of("POST", "https://my.openai.azure.com/openai/x") == "step"
    assert of("POST", "https://models.internal/generate") == "step"
    assert of("POST", "http://localhost:8080/generate") == "step"
    assert of("POST", "http://localhost:8081/generate") == "effect"
    assert of("POST", "http://10.0.0.1:8000/v1/chat/completions") == "step"
    assert of("POST", "http://10.0.0.1:8000/v1/messages") == "effect"
    assert of("POST", "http://10.0.0.1/v1/messages", **{"anthropic-version": "1"}) == "step"
    assert of("GET", "https://example.com/") == "step"
    assert of("DELETE", "https://example.com/") == "effect"


def test_a_rule_of_ones_own(provider: Provider) -> None:
    def rule(request: httpx.Request) -> Any:
        return {"/orders": "step", "/health": "plain"}.get(request.url.path)

    async def main() -> None:
        async with world() as one:
            client = durable_client(rule=rule, base_url=provider.url)

            async def body() -> Any:
                await client.post("/orders")
                await client.get("/health")
                return (await client.post("/v1/responses", json={"model": "m"})).status_code

            found, entries = await run(one, body)
            assert found == 200
            assert [e.key.partition(" ")[2].partition("127")[0] for e in entries[1:-1]] == [
                "POST ", "POST ",
            ]  # fmt: skip
            await client.aclose()

    asyncio.run(main())


def test_policies_are_checked() -> None:
    with pytest.raises(ValueError, match="on_interrupt='resume'"):
        DurableTransport(on_interrupt="resume")
    with pytest.raises(ValueError, match="on_ambiguous='x'"):
        durable_client(on_ambiguous="x")


def test_proxies_of_the_environment_are_kept(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def main() -> None:
        async with TCPProxy(provider.port) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            for library in (httpx2, httpx):
                async with durable_client(library=library) as client:
                    answer = await client.get("http://model.invalid/health")
                    assert answer.text == "ok"
            assert proxy.connections == 2

    asyncio.run(main())
