"""What of the package is replaced while a world lives: chance, and limits small enough to meet."""

from __future__ import annotations

import sys
from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random, random
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from durable_endpoints import ids

if TYPE_CHECKING:
    from tests.simulation.world import World

WORLD: World | None = None


def _modules() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "durable_endpoints"]  # fmt: skip


@contextmanager
def turned(chosen: dict[str, Any], world: World) -> Iterator[None]:
    """Give the package these limits, and the world's chance."""
    global WORLD
    old = [(module, name, getattr(module, name)) for module in _modules() for name in chosen
           if hasattr(module, name)]  # fmt: skip
    chance = Random(f"ids/{world.seed}")
    swaps = [(random, chance.random), (uuid4, lambda: UUID(bytes=chance.randbytes(16), version=4))]
    old += [(module, name, value) for module in _modules() for name, value in vars(module).items()
            if any(value is known for known, _ in swaps)]  # fmt: skip
    kept = {name: getattr(ids, name) for name in ("os", "_clock")}
    try:
        for module, name, value in old:
            found = [ours for known, ours in swaps if value is known]
            setattr(module, name, found[0] if found else chosen[name])
        ids.os = SimpleNamespace(urandom=chance.randbytes)  # type: ignore[assignment]
        ids._clock = SimpleNamespace(now_ms=world.wall_ms)  # type: ignore[assignment]
        WORLD = world
        yield
    finally:
        WORLD = None
        for module, name, value in old:
            setattr(module, name, value)
        for name, value in kept.items():
            setattr(ids, name, value)


def no_loop() -> None:
    """Leave the thread without a running loop."""
    events._set_running_loop(None)
