"""One visitor's request, and the templates that answer it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import jinja2
from starlette.responses import HTMLResponse, Response

from durable_endpoints.console import files, inert, words
from durable_endpoints.console.actions import Action, answers_to
from durable_endpoints.console.auth import COOKIE, Refused, Visitor, token_of
from durable_endpoints.errors import RunDeleted, RunNotFound
from durable_endpoints.ids import RUN_ID
from durable_endpoints.labels import parsed

if TYPE_CHECKING:
    from starlette.requests import Request

    from durable_endpoints.console.app import Console
    from durable_endpoints.engine.engine import Engine
    from durable_endpoints.llm.usage import Price
    from durable_endpoints.records import RunRecord, WaitRecord
    from durable_endpoints.stores.protocol import Store

_HERE: Final = Path(__file__).parent


@cache
def templates() -> jinja2.Environment:
    """Return the templates: everything escaped, everything inert, nothing undefined."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        finalize=inert.finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "duration": words.duration, "roughly": words.roughly, "size": words.size,
        "number": words.number, "iso": words.iso, "clock": words.clock,
        "shown": inert.shown, "line": inert.line, "labels": parsed,
        "cost": words.cost,
    }  # fmt: skip
    environment.globals |= {"explained": words.EXPLAINED, "static": files.address}
    return environment


class Visit:
    """A request of somebody who was let in."""

    def __init__(self, console: Console, request: Request, visitor: Visitor, prefix: str) -> None:
        self.console = console
        self.request = request
        self.visitor = visitor
        self.prefix = prefix
        self.now_ms = self.engine.clock.now_ms()

    @property
    def engine(self) -> Engine:
        """The engine whose runs are shown."""
        return self.console.around.engine

    @property
    def store(self) -> Store:
        """Where durable state is read."""
        return self.engine.store

    @property
    def prices(self) -> Mapping[str, Price]:
        """What models' tokens cost, as far as the middleware was told."""
        prices: Mapping[str, Price] = self.console.around.options.prices
        return prices

    @property
    def run_id(self) -> str:
        """The run in the address."""
        return str(self.request.path_params["run_id"])

    async def record(self, run_id: str | None = None) -> RunRecord:
        """Return the row of a run; of the one in the address, if none is named.

        Raises: RunNotFound, RunDeleted.
        """
        run_id = self.run_id if run_id is None else run_id
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFound(run_id)
        record = await self.store.get(run_id)
        if record is None and await self.store.was_deleted(run_id, None):
            raise RunDeleted(run_id)
        if record is None:
            raise RunNotFound(run_id)
        return record

    def url(self, path: str, **params: object) -> str:
        """Return the address of a page; `path` follows the prefix, parameters may be empty."""
        given = {name: value for name, value in params.items() if value not in ("", None)}
        query = f"?{urlencode(given)}" if given else ""
        return f"{quote(self.prefix)}{path}{query}"

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Render a page, or a part of one; new browsers get the token that forms need."""
        token, new = token_of(self.request)
        text = (
            templates()
            .get_template(template)
            .render(visit=self, url=self.url, token=token, now_ms=self.now_ms, **values)
        )
        response = HTMLResponse(text, status)
        if new:
            response.set_cookie(
                COOKIE, token, path=quote(self.prefix) or "/", httponly=True, samesite="strict",
                secure=self.request.url.scheme == "https",
            )  # fmt: skip
        return response

    @staticmethod
    def template(name: str) -> jinja2.Template:
        """Return a template."""
        return templates().get_template(name)

    @property
    def partial(self) -> bool:
        """Whether only the living part of the page is asked for."""
        return self.request.headers.get("hx-request-type") == "partial"

    def answers(self, wait: WaitRecord) -> list[Action]:
        """Return what this visitor can say to an open wait."""
        return answers_to(wait) if self.visitor.may_act else []

    def state(self, record: RunRecord) -> dict[str, Any]:
        """Return how a run's status is shown: what it waits for, for how long it is quiet."""
        return {
            "quiet_ms": words.quiet_ms(record, self.now_ms),
            "waits": words.waits(record),
        }


def error_page(request: Request, prefix: str, error: Refused) -> Response:
    """Render why there is nothing to see."""
    text = (
        templates()
        .get_template("error.html")
        .render(error=error, home=f"{quote(prefix)}/", prefix=quote(prefix))
    )
    headers = {"www-authenticate": "Console"} if error.status == 401 else None
    del request
    return HTMLResponse(text, error.status, headers)
