"""The scripted model, which says only as many words of an answer as the test lets it.

    python gated_model.py --port 8951 --delay 0.01 --gate FILE

The file holds a number: an answer stands still before its word of this number, counted from the
answer's beginning and not from where the model was asked to go on. Without the file nothing stands
still. So a run is in the middle of its answer for as long as a test has something to do meanwhile,
however slow the machine is just now.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import scripted_model

words_of = scripted_model.tokens


def shut(gate: Path, word: int) -> bool:
    """Say whether this word is not to be said yet."""
    try:
        return word >= int(gate.read_text() or 0)
    except FileNotFoundError:
        return False


def gate_words(gate: Path) -> None:
    """Have the model look at the gate before each word."""

    async def tokens(messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str]:
        last = messages[-1]
        word = len(last["content"].split()) if last["role"] == "assistant" else 0
        async for token in words_of(messages, **options):
            while shut(gate, word):
                await asyncio.sleep(0.01)
            word += 1
            yield token

    scripted_model.tokens = tokens


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--delay", type=float)
    parser.add_argument("--gate", type=Path)
    options = parser.parse_args()
    gate_words(options.gate)
    uvicorn.run(
        scripted_model.create_app(options.delay), host="127.0.0.1", port=options.port,
        log_level="warning",
    )  # fmt: skip
