"""The work itself, the same for every contender; so it imports nothing that one would install.

Every app answers the same four routes:
    GET  /ready   200 once it serves
    POST /steps   {"steps": n} -> runs n trivial steps, answers `answer_bytes(n)`
    POST /chat    {"tokens": n, "pace_ms": t} -> n SSE events, one a token
    POST /jobs    {"job": id, "steps": n, "step_ms": t} -> 202 + Location as soon as the work is
                  accepted; GET Location + "/response" -> 202 until it is done, then the answer
"""

from __future__ import annotations

import functools
import os

_FILLING = "the quick brown fox jumps over the lazy dog; " * 4


def result(number: int) -> dict[str, object]:
    """Return what step `number` (from 0) results in: some 200 bytes of JSON."""
    return {"step": number, "text": _FILLING}


def answer(results: list[dict[str, object]]) -> dict[str, object]:
    """Return the response of a run: it depends on every step's result."""
    total = sum(int(str(r["step"])) for r in results)
    return {
        "steps": len(results),
        "total": total,
        "bytes": sum(len(str(r["text"])) for r in results),
    }


def answer_bytes(steps: int) -> bytes:
    """Return the response's body as every contender must send it."""
    total, size = steps * (steps - 1) // 2, steps * len(_FILLING)
    return f'{{"steps":{steps},"total":{total},"bytes":{size}}}'.encode()


def token(number: int) -> str:
    """Return token `number` (from 0) of a stream."""
    return f"token{number:04}"


def step_seconds(job: int, number: int, step_ms: float) -> float:
    """Return how long a step of a job takes, in seconds: `step_ms` give or take a quarter.

    Without the spread all jobs would march in step and be cut at the same place.
    """
    return step_ms / 1000 * (0.75 + ((job * 7919 + number * 104729) % 1000) / 2000)


@functools.cache
def _executions() -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(os.environ["BENCH_EXECUTIONS"], flags, 0o644)


def executed(what: str, job: int, number: int) -> None:
    """Count a step's "began" or "ended" outside the process: a kill cannot undo the line."""
    os.write(_executions(), f"{what} {job} {number}\n".encode())
