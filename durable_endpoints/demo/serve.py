"""The app's process: `python -m durable_endpoints.demo.serve <fd>`.

It serves on a listening socket that its supervisor keeps open, so that clients of a killed server
wait in the socket's queue for the next one instead of being refused. It stops in good order when
its standard input ends, that is, when its supervisor is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Final

import uvicorn

from durable_endpoints.server import GRACE_S, DrainingServer, log_config

# At Ctrl-C a person waits, and what is left goes on at the next start.
DRAIN_S: Final = 0.3


def _stop_with_supervisor() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(fd: int) -> None:
    """Serve until told to stop."""
    threading.Thread(target=_stop_with_supervisor, daemon=True).start()
    config = uvicorn.Config(
        "durable_endpoints.demo.app:app",
        loop="uvloop",
        log_level="warning",
        log_config=log_config("warning"),
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    DrainingServer(config, drain_s=DRAIN_S).run(sockets=[socket.socket(fileno=fd)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
