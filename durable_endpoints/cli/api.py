"""What the commands ask of a running server, over its HTTP routes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click
import httpx
import orjson

from durable_endpoints.states import ENDED

# A run's journal is read in pages of this many entries.
PAGE: Final = 500
# Runs among which `last` and shortened ids are looked for.
RECENT: Final = 100
# How long a command waits to see the end of a run that it has asked to end.
SETTLE_S: Final = 3.0
SETTLE_TRIES: Final = 30
TIMEOUT: Final = httpx.Timeout(10.0)


@dataclass(frozen=True, slots=True)
class Server:
    """A server, by its address and the prefix of its durable routes."""

    url: str
    prefix: str = "/_durable"
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def base(self) -> str:
        """The address that run routes are added to."""
        return self.url.rstrip("/") + "/" + self.prefix.strip("/")

    @property
    def trust_env(self) -> bool:
        """Whether a proxy of the environment is asked: not for servers on this machine."""
        return urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")

    def runs(
        self, *, statuses: tuple[str, ...] = (), name: str | None = None,
        labels: tuple[str, ...] = (), limit: int = 20,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """List runs, newest first; `labels` are each `name:value`."""
        query: dict[str, Any] = {"limit": limit, "label": list(labels)}
        if name is not None:
            query["name"] = name
        if not statuses:
            return list(self._get("/runs", query)["runs"])
        pages = (self._get("/runs", {**query, "status": status})["runs"] for status in statuses)
        found = {run["id"]: run for page in pages for run in page}
        return [found[run_id] for run_id in sorted(found, reverse=True)][:limit]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run. Raises click.ClickException if there is none."""
        return self._get(f"/runs/{quote(run_id, safe='')}", what=f"run {run_id}")

    def usage(self, run_id: str) -> dict[str, Any] | None:
        """What a run's model calls used; None from a server that does not say."""
        with self._client() as client, self._explained():
            answer = client.get(f"{self.base}/runs/{quote(run_id, safe='')}/usage")
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            return dict(self._json(answer, f"run {run_id}"))

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        """All entries of a run's journal."""
        entries: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._get(f"/runs/{quote(run_id, safe='')}/journal", query, f"run {run_id}")
            entries += page["entries"]
            if page["next"] is None:
                return entries
            query["after"] = page["next"]

    def cancel(self, run_id: str) -> None:
        """Ask for a run to be cancelled. Raises click.ClickException if it has ended."""
        with self._client() as client, self._explained():
            answer = client.post(f"{self.base}/runs/{quote(run_id, safe='')}/cancel")
            if answer.status_code == httpx.codes.CONFLICT:
                raise click.ClickException(f"Nothing to cancel: {_detail(answer)}")
            self._json(answer, f"run {run_id}")

    def signal(self, run_id: str, name: str, data: Any, signal_id: str | None) -> str:
        """Send a signal; return what became of it. Raises click.ClickException if refused."""
        path = f"/runs/{quote(run_id, safe='')}/signals/{quote(name, safe='')}"
        headers = {} if signal_id is None else {"Idempotency-Key": signal_id}
        return str(self._post(path, data, f"run {run_id}", headers=headers)["outcome"])

    def retry(self, run_id: str) -> str:
        """Have a dead or diverged run go on; return its status."""
        path = f"/runs/{quote(run_id, safe='')}/retry"
        return str(self._post(path, None, f"run {run_id}")["status"])

    def retry_dead(self, name: str | None) -> Iterator[str]:
        """Have all dead runs go on, of one endpoint if named; yield their ids."""
        query = {} if name is None else {"name": name}
        while True:
            page = self._post("/runs/retry", None, query=query)
            yield from page["retried"]
            if page["next"] is None:
                return
            query = {**query, "before": page["next"]}

    def dead(self, name: str | None) -> Iterator[dict[str, Any]]:
        """Yield all dead runs, of one endpoint if named, newest first."""
        return self.every("dead", name)

    def every(self, status: str, name: str | None) -> Iterator[dict[str, Any]]:
        """Yield all runs of a status, of one endpoint if named, newest first."""
        query: dict[str, Any] = {"status": status, "limit": PAGE}
        if name is not None:
            query["name"] = name
        while True:
            page = self._get("/runs", query)
            yield from page["runs"]
            if page["next"] is None:
                return
            query["before"] = page["next"]

    def fork(self, run_id: str, from_step: int, text: str | None, results: dict[str, Any]) -> str:
        """Begin a run that shares another's journal up to an entry; return its id."""
        path = f"/runs/{quote(run_id, safe='')}/fork"
        body = {"from_step": from_step, "input": text, "results": results}
        return str(self._post(path, body, f"run {run_id}")["id"])

    def delete(self, run_id: str) -> bool:
        """Delete an ended run for good; False if it is not ours. Gone already is deleted."""
        with self._client() as client, self._explained():
            answer = client.delete(f"{self.base}/runs/{quote(run_id, safe='')}")
            if answer.status_code in (httpx.codes.NO_CONTENT, httpx.codes.GONE):
                return True
            if answer.status_code == httpx.codes.NOT_FOUND:
                return False
            self._json(answer, f"run {run_id}")
            return True

    def approvals(self) -> list[dict[str, Any]]:
        """What persons are asked now."""
        return list(self._get("/approvals")["approvals"])

    def decide(self, link: str, decision: dict[str, Any]) -> None:
        """Decide under a link: a path or a whole address. Raises click.ClickException if late."""
        home = self.url.rstrip("/") + "/"
        url = link if "://" in link else home + link.lstrip("/")
        # Whose link it is, is not known: logins are for our own server.
        with self._client(login=url.startswith(home)) as client, self._explained():
            answer = client.post(url, json=decision, headers={"Accept": "application/json"})
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise click.ClickException(f"This is no link of {self.url}: {_detail(answer)}.")
            self._json(answer, "this")

    def settled(self, run_id: str) -> str:
        """The status of a run that is about to end; waits for the end for a moment."""
        status = ""
        for _ in range(SETTLE_TRIES):
            status = str(self.run(run_id)["status"])
            if status in ENDED:
                break
            sleep(SETTLE_S / SETTLE_TRIES)
        return status

    def health(self) -> httpx.Response:
        """The health route's answer, as it is."""
        with self._client() as client, self._explained():
            return client.get(f"{self.base}/health")

    def resolve(self, wanted: str) -> str:
        """Return the id that `last`, or an id's beginning or end, stands for.

        Raises: click.ClickException if it stands for none, or for several.
        """
        if len(wanted) == 36 and wanted.count("-") == 4:
            return wanted
        recent = [str(run["id"]) for run in self.runs(limit=RECENT)]
        if wanted == "last":
            if not recent:
                raise click.ClickException(f"There are no runs at {self.url} yet.")
            return recent[0]
        found = [one for one in recent if one.startswith(wanted) or one.endswith(wanted)]
        if len(found) != 1:
            many = f"{len(found)} of the newest {RECENT} runs match" if found else "No run matches"
            raise click.ClickException(f"{many} {wanted!r}. See them with: durable runs")
        return found[0]

    def _get(
        self, path: str, query: dict[str, Any] | None = None, what: str = "this"
    ) -> dict[str, Any]:
        with self._client() as client, self._explained():
            return self._json(client.get(self.base + path, params=query), what)

    def _post(
        self, path: str, body: Any, what: str = "this", *, query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        with self._client() as client, self._explained():
            answer = client.post(self.base + path, params=query, json=body, headers=headers)
            return self._json(answer, what)

    def _client(self, *, login: bool = True) -> httpx.Client:
        headers = list(self.headers) if login else []
        return httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=self.trust_env)

    def _json(self, answer: httpx.Response, what: str) -> dict[str, Any]:
        if answer.is_success:
            try:
                found = answer.json()
            except ValueError:
                found = None
            if isinstance(found, dict):
                return found
            raise click.ClickException(self.not_ours())
        problem = "application/problem+json" in answer.headers.get("content-type", "")
        if not problem:
            raise click.ClickException(self.not_ours(answer.status_code))
        if answer.status_code == httpx.codes.GONE:
            raise click.ClickException(f"Deleted: {what}.")
        if answer.status_code == httpx.codes.NOT_FOUND and what != "this":
            raise click.ClickException(f"There is no {what} at {self.url}, or it is not yours.")
        if answer.status_code == httpx.codes.CONFLICT:
            raise click.ClickException(f"Not taken: {_detail(answer)}.{_first(answer)}")
        raise click.ClickException(f"The server refused ({answer.status_code}): {_detail(answer)}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise click.ClickException(self.unreachable(error)) from error
        except httpx.InvalidURL as error:
            raise click.ClickException(f"{self.url!r} is no address: {error}.") from error

    def unreachable(self, error: Exception) -> str:
        """What to do when nobody answers."""
        why = "nobody listens there" if isinstance(error, httpx.ConnectError) else repr(error)
        return (
            f"No answer from {self.url} ({why}).\n"
            "Start the server with `durable run module:app`, or say where it is with --url "
            "(or the environment variable DURABLE_URL)."
        )

    def not_ours(self, status: int = 200) -> str:
        """What to do when something else answers."""
        return (
            f"Something answers at {self.base} ({status}), but not with durable runs. Is "
            "DurableMiddleware in the app, and does --prefix equal its prefix=?"
        )


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    return str(problem.get("detail") or problem.get("title") or answer.reason_phrase)


def _first(answer: httpx.Response) -> str:
    """What was answered before, where only one answer is taken."""
    first = answer.json().get("answer")
    if not isinstance(first, dict):
        return ""
    by = f" by {first['by']}" if first.get("by") else ""
    data = orjson.dumps(first.get("data")).decode()
    return f"\nThe first answer came{by} at {first.get('at')}: {data}"
