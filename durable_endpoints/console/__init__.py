"""The console at the middleware's prefix: runs, their course, their journals, and what to do.

Needs Jinja2: `pip install 'durable-endpoints[console]'`. Nothing of it is loaded before somebody
opens it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from durable_endpoints.console.app import Console, Surroundings
    from durable_endpoints.console.auth import AuthHook

_MISSING: Final = "The console needs Jinja2: pip install 'durable-endpoints[console]'\n"
_NEEDED: Final = frozenset({"jinja2", "markupsafe"})


class Door:
    """Where the control routes hand over what is the console's; opens it at the first request."""

    def __init__(self, around: Surroundings, auth: AuthHook | None = None) -> None:
        self._around = around
        self._auth = auth
        self._console: Console | None = None

    @staticmethod
    def owns(path: str) -> bool:
        """Say whether an address below the prefix is the console's."""
        return path in ("", "/") or path.startswith("/console/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request; `path` is what follows the prefix."""
        if self._console is None:
            try:
                from durable_endpoints.console.app import Console
            except ModuleNotFoundError as error:
                if error.name not in _NEEDED:
                    raise
                await PlainTextResponse(_MISSING, 404)(scope, receive, send)
                return
            self._console = Console(self._around, self._auth)
        await self._console(scope, receive, send, path)
