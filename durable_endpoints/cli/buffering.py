"""Is a run's stream held back by a proxy on the way? Measured on a run that is running now.

Two things can be observed from here. A stream's first event is sent the moment it is opened, so
an open stream that stays silent is held back. And each event's entry in the journal says when it
was made, so events that were made one by one but arrive in clumps were held back too. On a
finished run, all of it arrives at once anyway: there is nothing to measure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final
from urllib.parse import quote

import httpx

from durable_endpoints.cli.api import Server
from durable_endpoints.cli.doctor import Finding
from durable_endpoints.client import SSEDecoder
from durable_endpoints.clock import Clock, SystemClock

# An event needs milliseconds from a server nearby; whole seconds mean that somebody holds it.
SILENCE_S: Final = 3.0
WATCH_S: Final = 5.0
EVENTS_MAX: Final = 200
# Arrivals closer than this came in one piece.
_CLUMP_MS: Final = 5.0
_HELD_MS: Final = 500.0
_PROXIES: Final = ("via", "x-cache", "cf-ray", "x-served-by", "x-amz-cf-id")


@dataclass(slots=True)
class Observed:
    """What a stream looked like from here."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    first_ms: float | None = None
    arrivals_ms: dict[int, float] = field(default_factory=dict)  # offset -> since the start


def proxies(answer: httpx.Response) -> Finding:
    """What answered, and what it passed on its way, as far as the headers tell."""
    named = [f"{name}: {answer.headers[name]}" for name in _PROXIES if name in answer.headers]
    by = answer.headers.get("server", "not named")
    way = f"; passed {', '.join(named)}" if named else ""
    took_ms = answer.elapsed.total_seconds() * 1000
    return Finding("ok", "server", f"{by}, {answer.http_version}, {took_ms:.0f} ms{way}")


async def watch(server: Server, run_id: str, clock: Clock | None = None) -> Observed:
    """Read a run's stream for a few seconds, noting when each event came."""
    clock = clock or SystemClock()
    seen = Observed()
    began = clock.monotonic_s()
    url = f"{server.base}/runs/{quote(run_id, safe='')}/stream"
    headers = [*server.headers, ("durable-events", "1"), ("accept", "text/event-stream")]
    client = httpx.AsyncClient(
        headers=headers, timeout=httpx.Timeout(10, read=None), trust_env=server.trust_env
    )

    async def read() -> None:
        decoder = SSEDecoder()
        async with client.stream("GET", url) as answer:
            seen.status, seen.headers = answer.status_code, dict(answer.headers)
            async for chunk in answer.aiter_bytes():
                at = (clock.monotonic_s() - began) * 1000
                seen.first_ms = at if seen.first_ms is None else seen.first_ms
                for message in decoder.feed(chunk):
                    offset = _offset(message.id)
                    if offset is not None:
                        seen.arrivals_ms.setdefault(offset, at)
                if len(seen.arrivals_ms) >= EVENTS_MAX:
                    return

    async with client:
        reader = asyncio.ensure_future(read())
        await asyncio.wait({reader}, timeout=SILENCE_S)
        if seen.first_ms is not None:
            await asyncio.wait({reader}, timeout=WATCH_S - SILENCE_S)
        if reader.done():
            reader.result()
        reader.cancel()
        await asyncio.wait({reader})
    return seen


def judge(seen: Observed, made_ms: Sequence[float]) -> list[Finding]:
    """Compare arrivals with the times at which the events were made, by offset."""
    if seen.status != httpx.codes.OK and seen.first_ms is not None:
        return [Finding("warn", "stream", f"answered {seen.status} instead of 200")]
    if seen.first_ms is None:
        return [
            Finding(
                "warn",
                "stream",
                f"silent for {SILENCE_S:.0f} s, though its first event is sent at once: it is "
                "held back on the way",
                _ADVICE,
            )
        ]
    findings = [Finding("ok", "stream", f"first byte after {seen.first_ms:.0f} ms")]
    if seen.first_ms > _HELD_MS:
        found = f"first byte after {seen.first_ms:.0f} ms, though it is sent at once"
        findings = [Finding("warn", "stream", f"{found}: it is held back on the way", _ADVICE)]
    if (encoding := seen.headers.get("content-encoding")) is not None:
        findings.append(
            Finding(
                "warn",
                "encoding",
                f"somebody on the way compresses the stream ({encoding}), and may wait for more",
                "Exclude text/event-stream from compression.",
            )
        )
    return [*findings, _clumps(seen, made_ms)]


_ADVICE: Final = (
    "nginx: proxy_buffering off (or pass X-Accel-Buffering on); Apache: flushpackets=on; "
    "a CDN: no caching and no compression of text/event-stream."
)


def _clumps(seen: Observed, made_ms: Sequence[float]) -> Finding:
    backlog = min(seen.arrivals_ms.values(), default=0.0) + _CLUMP_MS
    pairs = sorted(
        (at, made_ms[offset])
        for offset, at in seen.arrivals_ms.items()
        if at > backlog and offset < len(made_ms)
    )
    if len(pairs) < 3:
        return Finding(
            "note",
            "events",
            f"{len(pairs)} events came while watching: too few to say whether they come in clumps",
            "Try again while a run is streaming.",
        )
    delays = [at - made for at, made in pairs]
    spread = max(delays) - min(delays)
    pieces = 1 + sum(b[0] - a[0] > _CLUMP_MS for a, b in pairwise(pairs))
    made = 1 + sum(b[1] - a[1] > _CLUMP_MS for a, b in pairwise(pairs))
    found = (
        f"{len(pairs)} live events, made at {made} moments, came in {pieces}; "
        f"their delay varies by {spread:.0f} ms"
    )
    if spread > _HELD_MS and pieces < made / 2:
        return Finding("warn", "events", f"{found}: they are held back on the way", _ADVICE)
    return Finding("ok", "events", found)


def _offset(ident: str | None) -> int | None:
    """The offset in one of our event ids, `<run>:<offset>-<hash>`."""
    digits = (ident or "").rpartition(":")[2].partition("-")[0]
    return int(digits) if digits.isdigit() else None
