"""The local model's process: `python -m durable_endpoints.demo.model <file>`.

It prints its address on one line when it is ready, and ends when its standard input does, that
is, when the process that started it is gone.
"""

from __future__ import annotations

import sys
from importlib import import_module

# Four conversations of 2,048 tokens side by side.
_SLOTS = 4
_CONTEXT = 4 * 2048


def main(file: str) -> None:
    """Serve `file` on a free loopback port, with OpenAI's wire format."""
    xllamacpp = import_module("xllamacpp")  # of the extra `demo`
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel = _CONTEXT, _SLOTS
    params.port = 0
    # One thread is faster than a reader, and leaves the machine to its owner.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
