"""Starts the Restate server and the service's hypercorn, and makes them known to each other.

The ingress listens on the port given as the only argument. BENCH_DIR keeps the server's data and
the other ports, which a restart must find again. BENCH_RESTATE is the server's program.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ports(directory: Path) -> dict[str, int]:
    kept = directory / "ports.json"
    if not kept.exists():
        kept.write_text(json.dumps({name: _free_port() for name in ("service", "admin", "node")}))
    found: dict[str, int] = json.loads(kept.read_text())
    return found


def _register(admin: int, service: int, limit_s: float = 60) -> None:
    """Tell the server where the service is; again and again until both are up."""
    body = json.dumps({"uri": f"http://127.0.0.1:{service}", "force": True}).encode()
    headers = {"content-type": "application/json"}
    until = time.monotonic() + limit_s
    while True:
        request = urllib.request.Request(
            f"http://127.0.0.1:{admin}/deployments", data=body, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def main() -> None:
    directory = Path(os.environ["BENCH_DIR"])
    ports = _ports(directory)
    registered = directory / "registered"
    engine = {
        **os.environ,
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(ports["node"]),
        "RESTATE_ADMIN__BIND_PORT": str(ports["admin"]),
        "RESTATE_INGRESS__BIND_PORT": sys.argv[1],
        "DO_NOT_TRACK": "1",
    }
    data = str(directory / "restate-data")
    server = subprocess.Popen(
        [os.environ["BENCH_RESTATE"], "--no-logo", "--base-dir", data, "--node-name", "bench"],
        env=engine,
    )
    bind = f"127.0.0.1:{ports['service']}"
    words = ["-m", "hypercorn", "--bind", bind, "bench.peers.restate_app:app"]
    service = subprocess.Popen([sys.executable, *words])
    if not registered.exists():
        _register(ports["admin"], ports["service"])
        registered.touch()
    sys.exit(server.wait() or service.wait())


if __name__ == "__main__":
    main()
