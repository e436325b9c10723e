"""A uvicorn server that drains its durable runs before it stops (I22)."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.routing import BaseRoute
from uvicorn.supervisors import ChangeReload

from durable_endpoints.asgi.drain import drain_all
from durable_endpoints.asgi.middleware import DurableMiddleware
from durable_endpoints.errors import StreamAborted
from durable_endpoints.limits import DRAIN_S

logger = logging.getLogger("uvicorn.error")

# How often a second Ctrl-C is looked for while runs are drained; uvicorn's own pace.
_POLL_S: Final = 0.1
# What requests that are not durable get to finish, once the durable ones are drained.
GRACE_S: Final = 5
DEFAULT: Final = ("127.0.0.1", 8000)


class _Aborts(logging.Filter):
    """Shortens what uvicorn logs when a reader is cut off so that it comes back: no failure.

    An ASGI app has no other way to end a body unfinished than to raise.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StreamAborted):
            record.exc_info, record.exc_text = None, None
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = "A reader was cut off: %s", (error,)
        return record.levelno >= logger.getEffectiveLevel()


class DrainingServer(uvicorn.Server):
    """Drains at SIGTERM, SIGINT or --reload, before uvicorn waits for requests in flight.

    uvicorn's own order would wait for a durable run as for any request, however long it takes,
    and only then tell the app of the stop. A second SIGINT stops at once, as with uvicorn.
    `drain_s` is what runs at work get to finish, in seconds; the others are left to the next
    process, which goes on with them.
    """

    def __init__(self, config: uvicorn.Config, *, drain_s: float = DRAIN_S) -> None:
        super().__init__(config)
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Do what uvicorn does, keep its log readable, and say where the runs are seen."""
        logger.addFilter(_Aborts())
        await super().startup(sockets)
        if not is_durable(self.config.loaded_app):
            logger.warning(
                "No DurableMiddleware was found in %s: unless a wrapper hides it, nothing is "
                'durable. Add app.add_middleware(DurableMiddleware, store="sqlite:///durable.db").',
                self.config.app,
            )
            return
        address = (self.config.host, self.config.port)
        where = "" if address == DEFAULT else f" --url http://{address[0]}:{address[1]}"
        logger.info("See its runs with: durable runs%s", where)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then do what uvicorn does."""
        drained = asyncio.ensure_future(drain_all(self._drain_s))
        while not drained.done() and not self.force_exit:
            await asyncio.wait({drained}, timeout=_POLL_S)
        if not drained.done():
            drained.cancel()
            logger.warning("Stopped before the drain was over; the next start recovers the runs.")
        elif (error := drained.exception()) is not None:
            logger.error("The drain failed; the next start recovers the runs.", exc_info=error)
        await super().shutdown(sockets)


@dataclass(slots=True)
class Serving:
    """What `durable run` was asked for."""

    app: str
    host: str = "127.0.0.1"
    port: int = 8000
    reload: bool = False
    reload_dirs: list[str] = field(default_factory=list)
    app_dir: str = "."
    factory: bool = False
    drain_s: float = DRAIN_S
    grace_s: int = GRACE_S
    log_level: str = "info"
    uvicorn: dict[str, Any] = field(default_factory=dict)


def serve(asked: Serving) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 3 if the app did not start."""
    sys.path.insert(0, str(Path(asked.app_dir).absolute()))
    config = uvicorn.Config(
        asked.app,
        host=asked.host,
        port=asked.port,
        reload=asked.reload,
        reload_dirs=asked.reload_dirs or None,
        factory=asked.factory,
        timeout_graceful_shutdown=asked.grace_s,
        log_level=asked.log_level,
        log_config=log_config(asked.log_level),
        loop="uvloop" if sys.platform != "win32" else "auto",
        **asked.uvicorn,
    )
    server = DrainingServer(config, drain_s=asked.drain_s)
    if config.should_reload:
        listener = config.bind_socket()
        ChangeReload(config, target=server.run, sockets=[listener]).run()
        return 0
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped in order
        server.run()
    return 0 if server.started else uvicorn.config.STARTUP_FAILURE


def log_config(level: str) -> dict[str, Any]:
    """Uvicorn's logging, and the package's own in the same form."""
    config = deepcopy(uvicorn.config.LOGGING_CONFIG)
    ours = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    config["loggers"]["durable_endpoints"] = ours
    return config


def is_durable(app: object) -> bool:
    """Say whether a DurableMiddleware is found in an app, its wrappers or its mounted apps."""
    seen: set[int] = set()
    todo = [app]
    while todo:
        part = todo.pop()
        if isinstance(part, DurableMiddleware):
            return True
        if id(part) in seen:
            continue
        seen.add(id(part))
        if any(m.cls is DurableMiddleware for m in getattr(part, "user_middleware", ())):
            return True
        todo += [route for route in getattr(part, "routes", ()) if isinstance(route, BaseRoute)]
        todo += [inner for inner in (getattr(part, "app", None),) if callable(inner)]
    return False
