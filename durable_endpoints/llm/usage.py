"""What a run's answers cost, in tokens: read from the answers as they are recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx
import orjson

from durable_endpoints.engine.life import Life
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.errors import NotDurable
from durable_endpoints.llm.answers import ANSWER_MARK, Answer, AnswerCodec, header
from durable_endpoints.records import Entry, Kind

# More than an answer with figures in it has, and more than is worth keeping for them.
_READ_BYTES_MAX: Final = 4 * 1024 * 1024
_MILLION: Final = 1_000_000
_BODY: Final = frozenset({Kind.ITEM, Kind.RESET, Kind.STREAM_END})


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in a currency of yours; `cached` is as `input` if not given."""

    input: float
    output: float
    cached: float | None = None


@dataclass(slots=True)
class Tokens:
    """Figures of some answers. `input` has `cached` in it, `output` has `reasoning` in it."""

    calls: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, other: Tokens) -> None:
        """Add the figures of others."""
        self.calls += other.calls
        self.input += other.input
        self.cached += other.cached
        self.output += other.output
        self.reasoning += other.reasoning


@dataclass(slots=True)
class Usage:
    """Figures by model. `unknown` answers had none: cut, or streamed without being asked to."""

    models: dict[str, Tokens] = field(default_factory=dict)
    unknown: int = 0

    @property
    def total(self) -> Tokens:
        """The figures of all models together."""
        total = Tokens()
        for tokens in self.models.values():
            total.add(tokens)
        return total

    def take(self, meter: Meter) -> None:
        """Add an answer that has been read."""
        found = meter.result()
        if found is not None:
            model, tokens = found
            self.models.setdefault(model, Tokens()).add(tokens)
        elif meter.is_model:
            self.unknown += 1

    def cost(self, prices: Mapping[str, Price]) -> float:
        """Return what it cost; models that `prices` does not name cost nothing.

        A name that ends with `*` is for all models that begin so.
        """
        cost = 0.0
        for model, tokens in self.models.items():
            price = price_of(model, prices)
            if price is not None:
                cached = price.input if price.cached is None else price.cached
                cost += (tokens.input - tokens.cached) * price.input + tokens.cached * cached
                cost += tokens.output * price.output
        return cost / _MILLION


def prices_of(
    given: Mapping[str, Price | tuple[float, float] | tuple[float, float, float]],
) -> dict[str, Price]:
    """Return prices by model, given as `Price` or (input, output[, cached]) for a million tokens.

    Raises: ValueError for what is no price.
    """
    found = {}
    for model, price in given.items():
        figures: tuple[Any, ...] = price if isinstance(price, tuple) else ()
        if figures and not (
            len(figures) in (2, 3) and all(isinstance(n, int | float) and n >= 0 for n in figures)
        ):
            figures = ()
        if not isinstance(price, Price) and not figures:
            raise ValueError(
                f"prices: {model!r} is priced (input, output) or (input, output, cached) for a "
                f"million tokens, not {price!r}"
            )
        found[model] = price if isinstance(price, Price) else Price(*figures)
    return found


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """Return the price of a model; None if `prices` does not name it."""
    if model in prices:
        return prices[model]
    fitting = [name for name in prices if name.endswith("*") and model.startswith(name[:-1])]
    return prices[max(fitting, key=len)] if fitting else None


def usage_fields(usage: Usage, prices: Mapping[str, Price]) -> dict[str, Any]:
    """Return usage as JSON shows it; `cost` is None of models without a price."""
    models = {}
    for model, tokens in sorted(usage.models.items()):
        priced = price_of(model, prices) is not None
        cost = Usage({model: tokens}).cost(prices) if priced else None
        models[model] = {**asdict(tokens), "cost": cost}
    costs = [fields["cost"] for fields in models.values() if fields["cost"] is not None]
    total = {**asdict(usage.total), "cost": sum(costs) if costs else None}
    return {"models": models, "total": total, "unknown": usage.unknown}


class Meter:
    """Reads one answer, piece by piece, for the figures in it."""

    def __init__(self, answer: Answer) -> None:
        self._events = header(answer, "content-type").startswith("text/event-stream")
        kind = header(answer, "content-type")
        self._asked = 200 <= answer.status < 300 and (self._events or "json" in kind)
        self._line = b""
        self._model = ""
        self._found: dict[str, int] = {}
        encoding = header(answer, "content-encoding")
        # A recorded body is as it came, and may be compressed.
        self._headers = {"content-encoding": encoding} if encoding else None
        self._whole: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take what follows of the body."""
        if not self._asked or self._size > _READ_BYTES_MAX:
            return
        self._size += len(piece) if self._whole else 0
        if not self._events or self._headers is not None:
            self._whole.append(piece)
            return
        lines = (self._line + piece).split(b"\n")
        self._line = lines.pop()[-_READ_BYTES_MAX:]
        for line in lines:
            self._read_line(line)

    @property
    def is_model(self) -> bool:
        """Whether the answer names a model."""
        return bool(self._model)

    def result(self) -> tuple[str, Tokens] | None:
        """Return the model and its figures; None if the answer has none."""
        if self._whole:
            self._read_whole(b"".join(self._whole))
            self._whole = []
        self._read_line(self._line)
        found = self._found
        if not found:
            return None
        cached = found.get("cached", 0)
        # Anthropic counts what came from its cache, or went there, apart.
        apart = found.get("read", 0) + found.get("written", 0)
        tokens = Tokens(
            1, found.get("input", 0) + apart, cached + found.get("read", 0),
            found.get("output", 0), found.get("reasoning", 0),
        )  # fmt: skip
        return self._model, tokens

    def _read_whole(self, body: bytes) -> None:
        if self._headers is not None:
            try:
                body = httpx.Response(200, headers=self._headers, content=body).content
            except httpx.DecodingError:
                return  # cut in the middle
        if not self._events:
            self._read(body)
            return
        for line in body.split(b"\n"):
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:") and (b'"usage"' in line or not self._model):
            self._read(line[5:])

    def _read(self, text: bytes) -> None:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        for place in (value, value.get("response"), value.get("message")) if _is(value) else ():
            if _is(place):
                self._model = str(place.get("model") or self._model)
                if _is(place.get("usage")):
                    self._take(place["usage"])

    def _take(self, usage: dict[str, Any]) -> None:
        given = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
        made = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
        figures = {
            "input": usage.get("input_tokens", usage.get("prompt_tokens")),
            "output": usage.get("output_tokens", usage.get("completion_tokens")),
            "cached": given.get("cached_tokens"),
            "reasoning": made.get("reasoning_tokens"),
            "read": usage.get("cache_read_input_tokens"),
            "written": usage.get("cache_creation_input_tokens"),
        }
        # In a stream the last word counts: figures come again, larger.
        self._found |= {name: int(n) for name, n in figures.items() if isinstance(n, int)}


def _is(value: object) -> bool:
    return isinstance(value, dict)


class UsageReader:
    """Reads a run's journal, as far as it has come, for what its recorded answers used."""

    def __init__(self) -> None:
        self._next_seq = 0
        self._done = Usage()
        self._codec = AnswerCodec("")
        # Answers whose body is still to come, by the call that records it.
        self._open: dict[str, tuple[Answer, Meter]] = {}

    def feed(self, entries: Iterable[Entry]) -> None:
        """Take what follows of the journal; what was taken before is left out."""
        for entry in entries:
            if entry.seq >= self._next_seq:
                self._next_seq = entry.seq + 1
                self._take(entry)

    def usage(self) -> Usage:
        """Return what was used so far; an answer that is not complete counts as it is."""
        found = Usage({model: replace(tokens) for model, tokens in self._done.models.items()})
        found.unknown = self._done.unknown
        for _, meter in self._open.values():
            found.take(meter)
        return found

    def _take(self, entry: Entry) -> None:
        if entry.kind == Kind.STEP:
            if entry.payload.startswith(ANSWER_MARK):
                self._head(entry)
            return
        if not self._open or entry.kind not in _BODY:
            return
        ident = entry.key.partition(" ")[0]
        if ident not in self._open:
            return
        answer, meter = self._open[ident]
        if entry.kind == Kind.ITEM:
            meter.feed(entry.payload)
        elif entry.kind == Kind.RESET:
            self._done.unknown += 1
            self._open[ident] = answer, Meter(answer)
        else:
            del self._open[ident]
            self._done.take(meter)

    def _head(self, entry: Entry) -> None:
        answer = self._codec.decode(entry.payload)
        meter = Meter(answer)
        if answer.body is None:
            self._open[_next(entry.key.partition(" ")[0])] = answer, meter
        else:
            meter.feed(answer.body)
            self._done.take(meter)


def usage_of(entries: Iterable[Entry]) -> Usage:
    """Return what a run's recorded answers used, from its journal.

    An answer that a crash cut and that was asked for again counts as it is recorded in the end;
    what the provider charged for the cut one is not known: it is one of the `unknown`.
    """
    reader = UsageReader()
    reader.feed(entries)
    return reader.usage()


def _next(ident: str) -> str:
    """Return the identity of the call behind another one of its task."""
    path, slash, number = ident.rpartition("/")
    return f"{path}{slash}{int(number) + 1}"


@dataclass(slots=True)
class RunUsage:
    """What a run's answers used since it was begun or taken up again, in this process.

    `spent` was paid for; `saved` came from the journal instead.
    """

    spent: Usage = field(default_factory=Usage)
    saved: Usage = field(default_factory=Usage)


_OF_RUNS: Final[WeakKeyDictionary[LiveRun, tuple[Life, RunUsage]]] = WeakKeyDictionary()


def of_run(run: LiveRun) -> RunUsage:
    """Return the figures of a run in memory, to be added to."""
    life, usage = _OF_RUNS.get(run, (None, RunUsage()))
    if life is not run.life:  # it has been begun anew
        usage = RunUsage()
        _OF_RUNS[run] = run.life, usage
    return usage


def current_usage() -> RunUsage:
    """Return what the answers of the current run used so far.

    Raises: NotDurable if there is no run.
    """
    scope = SCOPE.get()
    if scope is None:
        raise NotDurable("there is no run here: mark the endpoint with @durable")
    return of_run(scope.run)
