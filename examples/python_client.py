"""A client in Python that does not notice the death of its server.

    cd examples
    durable run starlette_chat:app          # in one terminal
    python python_client.py "Why tea?"      # in another

Kill the server with kill -9 while it talks, and start it again: the answer goes on. Stop the
client with Ctrl-C, and it says how to come back.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

from durable_endpoints.client import DurableClient, Event


async def main(url: str, prompt: str, run_id: str | None) -> None:
    async with DurableClient(url) as client:
        opened = (
            client.resume(run_id)
            if run_id
            else client.stream("POST", "/chat", json={"prompt": prompt})
        )
        async with opened as run:
            print(f"[{run.run_id}]")
            try:
                async for item in run:
                    if isinstance(item, Event):
                        print(item.data, end="", flush=True)
            except asyncio.CancelledError:
                print(f"\nThe run goes on. Come back: python python_client.py --run {run.run_id}")
                raise
        print(f"\n[complete, {len(run.events)} events]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="What is a journal?")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--run", help="come back to this run instead of starting one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="\n… %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(main(options.url, options.prompt, options.run))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
