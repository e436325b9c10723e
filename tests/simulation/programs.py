"""The handlers: programs drawn from a seed, made of every kind of work there is.

A program is a tree of ops; each attempt of its run draws the same tree. To add a kind of work,
write its op:

    @op("nap", weight=2)
    async def nap(at: Place) -> Any:
        await durable_endpoints.sleep(at.fixed.uniform(0, 30))

`at.fixed` draws the same at every attempt, `at.world.chance` never does. `at.tell(text)` shows
something to the readers; `at.got(value)` says what the handler was given. Ops whose parts run
side by side take them from `at.parts()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

import durable_endpoints as durable
from tests.simulation.world import here

Play = Callable[["Place"], Awaitable[Any]]


class Op(NamedTuple):
    """A kind of work. `parts` is how many programs it holds at least and at most."""

    play: Play
    weight: int
    parts: tuple[int, int]


class Node(NamedTuple):
    """A place in a program."""

    op: str
    label: str
    seed: int
    parts: tuple[Node, ...]


OPS: Final[dict[str, Op]] = {}
WITHOUT: Final[set[str]] = set()  # ops that no program is to have


def op(name: str, *, weight: int, parts: tuple[int, int] = (0, 0)) -> Callable[[Play], Play]:
    """Add a kind of work to what programs are drawn from."""

    def add(play: Play) -> Play:
        OPS[name] = Op(play, weight, parts)
        return play

    return add


def grow(chance: Random, size: int, label: str, *, deep: int = 0) -> Node:
    """Draw a program of at most `size` ops."""
    names = [name for name, kind in OPS.items() if name not in WITHOUT
             and kind.parts[0] < size and deep + (kind.parts[1] > 0) < 4]  # fmt: skip
    [name] = chance.choices(names, [OPS[name].weight for name in names])
    low, high = OPS[name].parts
    count = chance.randint(low, min(high, size - 1)) if high else 0
    seed = chance.randrange(1 << 30)
    left = size - 1
    parts = []
    for number in range(count):
        share = max(1, left // (count - number))
        left -= share
        parts.append(grow(chance, share, f"{label}.{number}", deep=deep + 1))
    return Node(name, label, seed, tuple(parts))


def program(seed: int, size: int) -> list[Node]:
    """Return the program of a seed: ops one after another."""
    chance = Random(f"program/{seed}")
    found = []
    while size > 0:
        share = min(size, chance.choice((1, 1, 2, 4, 7)))
        found.append(grow(chance, share, str(len(found))))
        size -= share
    return found


@dataclass
class Told:
    """What one attempt of a handler has emitted, in order."""

    texts: list[str] = field(default_factory=list)


@dataclass
class Place:
    """Where in its program a handler is."""

    node: Node
    told: Told

    def __post_init__(self) -> None:
        self.label = self.node.label
        self.fixed = Random(self.node.seed)
        self.world = here().world

    def tell(self, text: str) -> None:
        """Emit an event."""
        durable.emit(text)
        self.told.texts.append(text)

    def got(self, value: Any) -> Any:
        """Note what the handler was given."""
        here().world.got(durable.current_run().id, value)
        return value

    def heard(self, data: Any) -> Any:
        """Note what a signal brought."""
        here().world.heard(durable.current_run().id, self.label, data)
        return data["n"]

    async def part(self, number: int) -> Any:
        """Play one part."""
        return await play_node(self.node.parts[number], self.told)

    def parts(self) -> list[Coroutine[Any, Any, Any]]:
        """Return all parts, to be awaited side by side."""
        return [self.part(number) for number in range(len(self.node.parts))]


async def play_node(node: Node, told: Told) -> Any:
    """Do the work of one place."""
    return await OPS[node.op].play(Place(node, told))


@durable.step
async def die(label: str, who: str, times: int) -> str:
    with here().executing(label) as value:
        await here().linger()
        if here().world.count_death(who) <= times:
            here().crash("poison")
        return value


@durable.step(retry=durable.Retry(attempts=2, initial=0.01))
async def stubborn(label: str) -> str:
    """Fail, until somebody mends what is wrong."""
    with here().executing(label) as value:
        if durable.current_run().id not in here().world.mended:
            raise ConnectionError("not yet")
        return value


# How programs end that do not end well.
ENDS: Final = ("fails", "gives up")


@durable.durable
async def play(seed: int, size: int, poison: int = 0, ends: str = "") -> dict[str, Any]:
    """Run a program; `poison` is how often it takes the process with it at its end.

    `ends` is how it ends itself: "" well, or as `ENDS` says. The programs of one seed and size
    are the same.
    """
    told = Told()
    out = [await play_node(node, told) for node in program(seed, size)]
    if poison:
        await die(f"poison{poison}", f"{seed}/{size}", poison)
        told.texts.append("survived")
        durable.emit("survived")
    if ends == "fails":
        raise RuntimeError("it was to fail")
    if ends == "gives up":
        out.append(await stubborn("stubborn"))
    return {"out": out, "told": told.texts}
