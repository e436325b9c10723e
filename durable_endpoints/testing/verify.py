"""`python -m durable_endpoints.testing.verify URL --path /chat`: judges an endpoint from outside.

Readers attach to runs, drop their connections and resume at random, and keep their transcripts.
In the end every transcript is compared with the run's log, read anew from its start: I1 and I5
(a transcript is the beginning of the log), I2 as it shows (the same key gives the same run and
the same bytes), I4 (dense offsets, the same for everybody), I7 (an id that was told resolves, a
key makes one run), I8 (nothing lost before something kept), I15 (one end).

With `--serve COMMAND` the server is started here, killed with SIGKILL at random moments and started
again; its lives get longer while no run ends, and runs are begun until the first kill at least.
With `--kill-pid-file` the process whose id is in that file is killed; whoever supervises it has to
start it again and to write the new id.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, TextIO

import httpx

from durable_endpoints.testing.plan import Plan, asked_for
from durable_endpoints.testing.reader import Reader, Request, pause
from durable_endpoints.testing.serving import DoesNotServe, Served, kill_named
from durable_endpoints.testing.transcript import Transcript, Violation, compare

EXIT_VIOLATED: Final = 1
EXIT_UNREACHED: Final = 2
_LONGER: Final = 1.5  # the next life, if no run has ended in the last one
_STANDSTILL: Final = frozenset({"completed", "failed", "cancelled", "dead", "diverged"})


@dataclass
class Findings:
    """What came of it."""

    seed: int
    runs: int = 0
    transcripts: int = 0
    events: int = 0
    connections: int = 0
    restarts: int = 0
    kills: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    unreached: str | None = None  # why nothing can be said

    @property
    def code(self) -> int:
        """Exit code: 0 nothing found, 1 violations, 2 no runs to look at."""
        if self.violations:
            return EXIT_VIOLATED
        return EXIT_UNREACHED if self.unreached or not self.runs else 0

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.runs} runs {dict(self.statuses)}, {self.kills} kills",
            f"{self.transcripts} transcripts, {self.events} events over {self.connections} "
            f"connections, {self.restarts} told to begin anew",
        ]
        if self.unreached:
            lines.append(f"could not verify: {self.unreached}")
        elif not self.runs and not self.violations:
            lines.append("could not verify: no run was seen to its end")
        elif not self.violations:
            lines.append("no violation of I1, I2, I4, I5, I7, I8, I15 as far as they show outside")
        lines += [f"VIOLATION {violation}" for violation in self.violations]
        return "\n".join(lines)


class Verifier:
    """Carries out a plan."""

    def __init__(self, plan: Plan, show: TextIO | None = None) -> None:
        self.findings = Findings(plan.seed)
        self._plan = plan
        self._show = show
        self._chance = random.Random(f"verify/{plan.seed}")  # noqa: S311 - a seed replays it
        self._begun = 0
        self._under_way = 0
        self._until_s = 0.0
        self._nobody = ""  # why nobody was killed when it was time to
        self._served = Served(plan.serve, plan.url) if plan.serve else None

    async def verify(self) -> Findings:
        """Begin the runs, follow them, judge them."""
        try:
            if self._served is not None:
                await self._served.start()
            await self._verify()
        except* DoesNotServe as failed:
            self.findings.unreached = str(failed.exceptions[0])
        finally:
            if self._served is not None:
                self._served.stop()
        if self._plan.kills and not self.findings.kills and not self.findings.unreached:
            why = self._nobody or (
                "the runs were over before the first was due: give --seconds, or a shorter "
                "--kill-every"
            )
            self.findings.unreached = f"no kill happened: {why}"
        return self.findings

    async def _verify(self) -> None:
        plan = self._plan
        self._until_s = asyncio.get_running_loop().time() + (plan.seconds or 0)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(60, connect=10)
        # Whose a run is may be told by them: the control routes ask for that, too.
        headers = {name: value for name, value in plan.opening.headers.items()
                   if not name.startswith("content-")}  # fmt: skip
        async with httpx.AsyncClient(
            base_url=plan.url, headers=headers, limits=limits, timeout=timeout
        ) as http:
            if not await self._is_durable(http):
                return
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(self._kill())
                async with asyncio.TaskGroup() as clients:
                    for _ in range(plan.clients):
                        clients.create_task(self._client(http))
                killing.cancel()

    async def _is_durable(self, http: httpx.AsyncClient) -> bool:
        """Say whether the endpoint answers at all, and as a durable one."""
        opening = self._plan.opening
        try:
            async with http.stream(
                opening.method, opening.path, content=opening.body, headers=opening.headers
            ) as response:
                run_id = response.headers.get("durable-run-id")
            if run_id is None:
                self.findings.unreached = (
                    f"{opening.method} {opening.path} answered {response.status_code} without "
                    "a Durable-Run-Id: is the route durable, and the request right?"
                )
            else:
                self.findings.unreached = await self._unrouted(http, run_id)
        except httpx.TransportError as error:
            self.findings.unreached = f"{self._plan.url} does not answer: {error!r}"
        return self.findings.unreached is None

    async def _unrouted(self, http: httpx.AsyncClient, run_id: str) -> str | None:
        """Say why the control routes are not where they should be; None if they are there."""
        path = f"{self._plan.prefix}/runs/{run_id}"
        answer = await http.get(path)
        try:
            told = answer.json()
        except ValueError:
            told = None
        if isinstance(told, dict):
            # A run that the routes themselves do not know is not theirs to blame: that is I7.
            if str(told.get("type")).endswith("/run-not-found"):
                return None
            if answer.status_code == 200 and told.get("id") == run_id and "status" in told:
                return None
        return (
            f"GET {path} answered {answer.status_code}, not with the run: the control routes are "
            f"not at {self._plan.prefix}, give their place as --prefix"
        )

    async def _kill(self) -> None:
        plan, ended, every_s = self._plan, 0, self._plan.kill_every_s
        while plan.kills:
            await asyncio.sleep(every_s * self._chance.uniform(0.2, 1.8))
            # A step that takes longer than every life would never be done.
            every_s = plan.kill_every_s if self.findings.runs > ended else every_s * _LONGER
            ended = self.findings.runs
            if self._served is not None:
                self._served.kill()
                self.findings.kills += 1
                await self._served.start()
            elif plan.kill_pid_file is not None:
                self._nobody = kill_named(plan.kill_pid_file)  # it may be between two lives
                self.findings.kills += not self._nobody

    async def _client(self, http: httpx.AsyncClient) -> None:
        while self._more():
            number = self._begun
            self._begun += 1
            self._under_way += 1
            chance = random.Random(f"{self._plan.seed}/{number}")  # noqa: S311
            try:
                async with asyncio.timeout(self._plan.timeout_s):
                    await self._one_run(http, chance)
            except TimeoutError:
                detail = f"run {number} did not end in {self._plan.timeout_s:g} s"
                self.findings.violations.append(Violation("I16", "?", detail))
            self._under_way -= 1
            if self._show is not None:
                found = self.findings
                self._show.write(
                    f"{found.runs}{self._of} runs, {found.events} events, "
                    f"{found.kills} kills, {len(found.violations)} violations\n"
                )
                self._show.flush()

    def _more(self) -> bool:
        """Say whether to begin another run."""
        if self._served is not None and not self.findings.kills and not self._under_way:
            return True  # for the first kill to meet
        if self._plan.seconds:
            return asyncio.get_running_loop().time() < self._until_s
        return self._begun < self._plan.runs

    @property
    def _of(self) -> str:
        more = self._plan.seconds or self._begun > self._plan.runs
        return "" if more else f"/{self._plan.runs}"

    async def _one_run(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        """Begin a run with several readers, and compare what they saw."""
        plan = self._plan
        key = f"verify-{plan.seed}-{secrets.token_hex(8)}"
        opening = Request(
            plan.opening.method, plan.opening.path, plan.opening.body,
            {**plan.opening.headers, "idempotency-key": key},
        )  # fmt: skip
        control = chance.random() < 0.5
        first = Transcript("the first reader", control)
        transcripts = [first]
        beginning = Reader(
            http, first, chance=chance, opening=opening, prefix=plan.prefix, cut=plan.cut,
            resend=chance.random() < 0.3,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            following = group.create_task(beginning.follow())
            named = group.create_task(beginning.named.wait())
            await asyncio.wait([following, named], return_when=asyncio.FIRST_COMPLETED)
            named.cancel()
            for number in range(2, plan.readers + 1 if first.run_id else 0):
                other = Transcript(f"reader {number}", chance.random() < 0.5, first.run_id)
                transcripts.append(other)
                reader = Reader(
                    http, other, chance=chance, prefix=plan.prefix, cut=plan.cut,
                    bare=chance.random() < 0.3,
                )  # fmt: skip
                group.create_task(reader.follow())
        await self._judge(http, opening, transcripts, chance)

    async def _judge(
        self, http: httpx.AsyncClient, opening: Request, transcripts: list[Transcript],
        chance: random.Random,
    ) -> None:  # fmt: skip
        found, run_id = self.findings, transcripts[0].run_id
        for transcript in transcripts:
            found.transcripts += 1
            found.events += len(transcript.seen)
            found.connections += transcript.connections
            found.restarts += transcript.restarts
            found.violations += transcript.violations
        if run_id is None:
            return
        status = await self._end(http, run_id)
        found.runs += 1
        found.statuses[status] += 1
        if status not in _STANDSTILL - {"diverged"}:
            found.violations.append(Violation("I16", run_id, f"the run is {status}"))
            return
        log = Transcript("the log", True, run_id)
        plain = Transcript("the log without rewinds", False, run_id)
        again = Transcript("the same request again", transcripts[0].control)
        same = opening if transcripts[0].control else None
        for transcript, begin in ((log, None), (plain, None), (again, same or opening)):
            await Reader(
                http, transcript, chance=chance, opening=begin, prefix=self._plan.prefix
            ).follow()
            found.violations += transcript.violations
        if again.run_id != run_id:
            detail = f"its key, sent again, made run {again.run_id}"
            found.violations.append(Violation("I7", run_id, detail))
            return
        for transcript in (*transcripts, plain, again):
            found.violations += compare(transcript, log)

    async def _end(self, http: httpx.AsyncClient, run_id: str) -> str:
        """Wait until nothing more will come of a run; return its status."""
        while True:
            try:
                answer = await http.get(f"{self._plan.prefix}/runs/{run_id}")
            except httpx.TransportError:
                await pause()
                continue
            if answer.status_code == 200:
                status = str(answer.json()["status"])
                if status in _STANDSTILL:
                    return status
            elif answer.status_code < 500:
                return f"unknown ({answer.status_code})"
            await pause()


def main(arguments: list[str] | None = None) -> int:
    """Verify, print the findings, return the exit code."""
    plan, quiet = asked_for(arguments)
    findings = asyncio.run(Verifier(plan, None if quiet else sys.stderr).verify())
    sys.stdout.write(f"{findings}\n")
    return findings.code


if __name__ == "__main__":
    sys.exit(main())
