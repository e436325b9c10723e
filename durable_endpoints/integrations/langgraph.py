"""LangGraph: graphs whose threads are read and written as part of the run around them.

    graph = builder.compile(checkpointer=DurableSaver(AsyncPostgresSaver(...)))

What a graph does is done again at a replay, from the journal: model requests made through
`durable_client()` and nodes that are steps are not repeated. Needs the extra `langgraph`.
Outside a run the saver is the inner one.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)

from durable_endpoints import NotDurable, effect, step
from durable_endpoints.engine.calls import scope_or_none
from durable_endpoints.engine.run import LiveRun

_KEYS: Final = ("thread_id", "checkpoint_ns", "checkpoint_id")


class DurableSaver(BaseCheckpointSaver[Any]):
    """A checkpoint saver whose reads are steps and whose writes are effects, each made once.

    A graph that is run again over its journal makes checkpoints with new ids; they are known to
    the inner saver by the ids that they had at first, so a thread's history has each of them once.

    Args: `inner`, any saver that keeps threads longer than a run. For a graph that needs a thread
    within its run only, LangGraph's own `InMemorySaver` does without this: it is filled again.

    Raises: NotDurable for the synchronous methods in a run: use `ainvoke`, `astream`.
    """

    def __init__(self, inner: BaseCheckpointSaver[Any]) -> None:
        super().__init__(serde=inner.serde)
        self.inner = inner
        self._ids: WeakKeyDictionary[LiveRun, dict[str, str]] = WeakKeyDictionary()

    @property
    def config_specs(self) -> list[Any]:
        """See `BaseCheckpointSaver.config_specs`."""
        return self.inner.config_specs

    def get_next_version(self, current: Any, channel: None) -> Any:
        """See `BaseCheckpointSaver.get_next_version`."""
        return self.inner.get_next_version(current, channel)

    # --- reading

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint, as it was when it was first asked for."""
        config = self._known(config)

        async def read(_: Any) -> str | None:
            found = await self.inner.aget_tuple(config)
            return None if found is None else self._dump(found)

        data = await step.run("checkpoint get", read, _place(config))
        return None if data is None else self._load(data)

    async def alist(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:  # fmt: skip
        """Yield a thread's checkpoints, as they were when they were first asked for."""
        config, before = config and self._known(config), before and self._known(before)

        async def read() -> list[str]:
            found = self.inner.alist(config, filter=filter, before=before, limit=limit)
            return [self._dump(item) async for item in found]

        for data in await step.run("checkpoint list", read):
            yield self._load(data)

    def _dump(self, found: CheckpointTuple) -> str:
        kind, data = self.serde.dumps_typed(tuple(found))
        return f"{kind}:{b64encode(data).decode()}"

    def _load(self, text: str) -> CheckpointTuple:
        kind, _, data = text.partition(":")
        return CheckpointTuple(*self.serde.loads_typed((kind, b64decode(data))))

    # --- writing

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:  # fmt: skip
        """Keep a checkpoint."""
        known = self._known(config)

        async def write(_: Any) -> dict[str, Any]:
            kept = await self.inner.aput(known, checkpoint, metadata, new_versions)
            return _place(kept)

        step_number = {"step": metadata.get("step"), "source": metadata.get("source")}
        kept = await effect.run("checkpoint put", write, step_number)
        scope = scope_or_none()
        if scope is not None:
            ids = self._ids.setdefault(scope.run, {})
            ids[checkpoint["id"]] = str(kept["checkpoint_id"])
        return _config(kept | {"checkpoint_id": checkpoint["id"]})

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str,
        task_path: str = "",
    ) -> None:  # fmt: skip
        """Keep what a task of a checkpoint has written."""
        known = self._known(config)

        async def write(_: Any) -> None:
            await self.inner.aput_writes(known, writes, task_id, task_path)

        await effect.run("checkpoint put writes", write, [channel for channel, _ in writes])

    async def adelete_thread(self, thread_id: str) -> None:
        """Forget a thread."""
        await effect.run("checkpoint delete thread", self.inner.adelete_thread, thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread."""
        copy = self.inner.acopy_thread
        await effect.run("checkpoint copy thread", copy, source_thread_id, target_thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See `BaseCheckpointSaver.adelete_for_runs`."""
        delete = self.inner.adelete_for_runs
        await effect.run("checkpoint delete runs", delete, list(run_ids))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See `BaseCheckpointSaver.aprune`."""

        async def prune(ids: list[str]) -> None:
            await self.inner.aprune(ids, strategy=strategy)

        await effect.run("checkpoint prune", prune, list(thread_ids))

    def _known(self, config: RunnableConfig) -> RunnableConfig:
        """Return a config whose checkpoint goes by the id that the inner saver knows."""
        scope = scope_or_none()
        place = _place(config)
        if scope is not None:
            known = self._ids.get(scope.run, {}).get(str(place.get("checkpoint_id")))
            if known is not None:
                configurable = {**config["configurable"], "checkpoint_id": known}
                return cast("RunnableConfig", {**config, "configurable": configurable})
        return config

    # --- synchronous

    def _outside(self) -> BaseCheckpointSaver[Any]:
        if scope_or_none() is not None:
            raise NotDurable("in a run, use the graph's async methods: ainvoke, astream, …")
        return self.inner

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See `BaseCheckpointSaver.get_tuple`; outside a run only."""
        return self._outside().get_tuple(config)

    def list(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:  # fmt: skip
        """See `BaseCheckpointSaver.list`; outside a run only."""
        return self._outside().list(config, filter=filter, before=before, limit=limit)

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:  # fmt: skip
        """See `BaseCheckpointSaver.put`; outside a run only."""
        return self._outside().put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str,
        task_path: str = "",
    ) -> None:  # fmt: skip
        """See `BaseCheckpointSaver.put_writes`; outside a run only."""
        self._outside().put_writes(config, writes, task_id, task_path)


def _place(config: RunnableConfig) -> dict[str, Any]:
    """Return what says which checkpoint a config means."""
    configurable = config.get("configurable", {})
    return {key: configurable[key] for key in _KEYS if configurable.get(key) is not None}


def _config(place: dict[str, Any]) -> RunnableConfig:
    return cast("RunnableConfig", {"configurable": place})
