"""Runs that stand still where a test wants them to."""

from __future__ import annotations

import asyncio
from typing import Any

from durable_endpoints import durable, emit, step, wait_for_signal

gates: dict[str, asyncio.Event] = {}
turns: list[int] = []  # that `counts` took


async def gate(name: str) -> None:
    """Wait until the gate is open."""
    await gates.setdefault(name, asyncio.Event()).wait()


def open_gate(name: str) -> None:
    """Let those go on who wait at a gate, and who will come."""
    gates.setdefault(name, asyncio.Event()).set()


@durable
async def counts(most: int, stop_at: int = -1) -> int:
    """Tell the numbers up to `most`; stand still before `stop_at`, at the gate "counts"."""
    for number in range(most):
        if number == stop_at:
            await gate("counts")
        emit(number)
        await step.run("turn", turns.append, number)
    return most


@durable
async def asks(name: str) -> Any:
    """Wait for a signal."""
    emit("asked")
    return await wait_for_signal(name)
