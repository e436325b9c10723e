"""Development mode: notice a request that changes something, sent from a plain step.

A plain step may act on what a crash can undo, and runs again after one. What it sends should be
an effect. So httpx, httpx2, aiohttp and requests are watched where they send to the network, when
they are imported or if they are already; none is imported from here.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from durable_endpoints.limits import DETECTOR_PLACES_MAX

logger = logging.getLogger("durable_endpoints")

Report: TypeAlias = Callable[[str, str, str], None]

# Hosts that are asked by POST and change nothing for anybody: model providers.
LLM_HOSTS: Final = (
    "api.openai.com", "*.openai.azure.com", "api.anthropic.com",
    "generativelanguage.googleapis.com", "bedrock-runtime.*.amazonaws.com",
    "api.mistral.ai", "api.cohere.com", "api.groq.com", "openrouter.ai",
)  # fmt: skip

_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))

# Where each library hands a request to the network; the request is the first argument.
_SENDERS: Final = {
    "httpx": (("HTTPTransport", "handle_request"), ("AsyncHTTPTransport", "handle_async_request")),
    "httpx2": (("HTTPTransport", "handle_request"), ("AsyncHTTPTransport", "handle_async_request")),
    "aiohttp": (("BaseConnector", "connect"),),
    "requests": (("adapters.HTTPAdapter", "send"),),
}

# Code that is nobody's own: the standard library, installed packages, this package.
_FOLDERS: Final = ("stdlib", "platstdlib", "purelib", "platlib")
_NOT_OWN: Final = (
    "<frozen", str(Path(__file__).parent) + os.sep,
    *(sysconfig.get_paths()[folder] + os.sep for folder in _FOLDERS),
)  # fmt: skip


class UnannotatedEffect(UserWarning):
    """A plain step sends a request that may change something; it should be an `@effect`."""


class Detector:
    """One installation: which hosts are in order, when to look, whom to tell."""

    def __init__(
        self, allowed_hosts: Iterable[str], inside_plain_step: Callable[[], bool], report: Report
    ) -> None:
        self._allowed = tuple(host.lower() for host in allowed_hosts)
        self._inside_plain_step = inside_plain_step
        self._report = report

    def look(self, library: str, method: str, url: str) -> None:
        """Report a request unless it is in order."""
        if method.upper() in _SAFE_METHODS or not self._inside_plain_step():
            return
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = f":{parts.port}" if parts.port is not None else ""
        if not any(
            fnmatchcase(host, allowed) or fnmatchcase(host + port, allowed)
            for allowed in self._allowed
        ):
            shown = f"[{host}]" if ":" in host else host
            self._report(library, method.upper(), f"{parts.scheme}://{shown}{port}{parts.path}")


class Warn:
    """The usual report: a warning and a log line, once for a place in the code, host and method."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, str, str]] = set()

    def __call__(self, library: str, method: str, url: str) -> None:
        """Report a request.

        The path of the URL is not shown: with some services it is a secret.

        Raises: UnannotatedEffect if warnings of that kind are errors; nothing is sent then.
        """
        host = urlsplit(url).netloc
        file, line = _place()
        place = (file, line, host, method)
        if place in self._seen or len(self._seen) >= DETECTOR_PLACES_MAX:
            return
        message = (
            f"a plain step sends {method} to {host} ({library}). A crash can make it send that "
            "again, or make it act on a result that is lost. Make it an @effect; or, if the "
            "request changes nothing, add the host to the allowed ones."
        )
        logger.warning("%s:%d: %s", file, line, message)
        warnings.warn_explicit(message, UnannotatedEffect, file, line)
        self._seen.add(place)


def _place() -> tuple[str, int]:
    """Return the file and line of the innermost code that is the user's own."""
    frame = inspect.currentframe()
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_NOT_OWN):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "an installed package", 0


class _Importing(importlib.abc.MetaPathFinder):
    """Patches a library when it is imported later."""

    def __init__(self) -> None:
        self._finding: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _SENDERS or fullname in self._finding:
            return None
        self._finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._finding.discard(fullname)
        if spec is not None and spec.loader is not None:
            _after_loading(spec.loader)
        return spec


def _after_loading(loader: Any) -> None:
    """Have a library patched when its loader has run it; the loader stays what it is."""
    run = getattr(loader, "exec_module", None)
    if run is None:  # a loader of the old protocol: its library is found at the next `install`
        return

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        run(module)
        if _installed:
            _patch(module)

    loader.exec_module = exec_module


_installed: list[Detector] = []
_patched: list[tuple[type, str, Callable[..., Any], Callable[..., Any]]] = []
_importing: Final = _Importing()


def install(
    allowed_hosts: Iterable[str] = LLM_HOSTS,
    *,
    inside_plain_step: Callable[[], bool],
    report: Report | None = None,
) -> Detector:
    """Watch what plain steps send; return what `uninstall` takes.

    `allowed_hosts`: host names, or host:port, that may get any request; `*` stands for anything.
    `inside_plain_step` tells whether the calling code is one. `report(library, method, url)` gets
    the URL without credentials, query and fragment, before the request is sent; what it raises
    keeps the request from being sent. Default: a warning, see `Warn`. GET, HEAD and OPTIONS are
    never reported.
    """
    detector = Detector(allowed_hosts, inside_plain_step, report or Warn())
    if not _installed:
        sys.meta_path.insert(0, _importing)
        for name in _SENDERS:
            if name in sys.modules:
                _patch(sys.modules[name])
    _installed.append(detector)
    return detector


def uninstall(detector: Detector | None = None) -> None:
    """Take back one `install`, or all of them; with the last one the libraries are as before."""
    if detector is None:
        _installed.clear()
    elif detector in _installed:
        _installed.remove(detector)
    if _installed:
        return
    if _importing in sys.meta_path:
        sys.meta_path.remove(_importing)
    for patch in tuple(_patched):
        kind, name, original, ours = patch
        if vars(kind).get(name) is ours:  # else somebody wrapped ours, which only looks on now
            setattr(kind, name, original)
            _patched.remove(patch)


def _patch(module: ModuleType) -> None:
    library = module.__name__
    for path, name in _SENDERS[library]:
        kind: Any = module
        for part in path.split("."):
            kind = getattr(kind, part, None)
        original = getattr(kind, name, None)
        if original is None or any(done[:2] == (kind, name) for done in _patched):
            continue  # half imported, or a version that sends in another way
        ours = _watched(library, original)
        setattr(kind, name, ours)
        _patched.append((kind, name, original, ours))


def _watched(library: str, send: Callable[..., Any]) -> Callable[..., Any]:
    def look(request: Any) -> None:
        for detector in tuple(_installed):
            detector.look(library, str(request.method), str(request.url))

    if inspect.iscoroutinefunction(send):

        @functools.wraps(send)
        async def sending(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            look(request)
            return await send(self, request, *args, **kwargs)

    else:

        @functools.wraps(send)
        def sending(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            look(request)
            return send(self, request, *args, **kwargs)

    return sending
