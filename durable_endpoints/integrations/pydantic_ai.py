"""pydantic-ai: agents whose tools, MCP calls and model requests are steps of the run around them.

    agent = Agent("openai:gpt-5", name="helper", capabilities=[DurableEndpoints()])

Needs the extra `pydantic-ai`. Outside a run the agent is what it would be without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import JsonValue
from pydantic_ai import RunContext
from pydantic_ai.capabilities.abstract import WrapModelRequestHandler, WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    DurableOperationBackend,
    DurableOperationId,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
    conversation_id_from_run_id,
)
from pydantic_ai.external_events import (
    ExternalEventError,
    ExternalEventWaiter,
    external_event_scope,
)
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, ModelResolutionContext, infer_model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers import Provider, infer_provider_class
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import AgentDepsT

from durable_endpoints import effect, now, step, uuid7, wait_for_signal
from durable_endpoints.engine.calls import scope_or_none
from durable_endpoints.engine.context import current_run
from durable_endpoints.errors import ControlSignal, NonRetryableError, SignalTimeout
from durable_endpoints.llm import durable_client, is_durable

# Where a tool's metadata says how it is run.
METADATA: Final = "durable_endpoints"
_FAILED: Final = "external_event_error"
Options = Mapping[str, Any]


class DurableEndpoints(BaseDurabilityCapability[AgentDepsT]):
    """Makes an agent's work part of the durable run that it is called in.

    - Requests to models named by a string (`"openai:gpt-5"`) go through `http_client`, by default
      `durable_client()`; so do those of models whose provider was given a durable client. They
      stream as they do without (`run_stream`, `iter`), token by token, and are recorded on the
      way. All other models' requests are steps, whose events come when they are complete.
    - Tool calls are steps. A tool that is a `@step` or an `@effect` by itself keeps its own ways.
      Else `metadata={"durable_endpoints": {...}}` says how: `"effect": True`, and what `step` and
      `effect` take: `retry`, `timeout`, `rate_limit`. `False` instead: no step at all, for tools
      that wait (`sleep`, `wait_for_signal`, `approval`) or have steps of their own.
    - `RequestInput` and `wait_for_external_event` wait durably. The token is the path, below the
      prefix of the control routes, to which the answer is posted as a signal; an answer
      `{"external_event_error": "reason"}` fails it.

    `models`, `event_stream_handler` and `name` are those of pydantic-ai's own durability
    capabilities. The agent needs a name, its toolsets an id.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="durable_endpoints",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        serialization_failure=lambda error: NonRetryableError(str(error)),
        toolset_lifecycles={
            "function": "enter-always",
            "mcp": "enter-in-durable-unit",
            "dynamic": "enter-never",
        },
        tool_config_key=METADATA,
        cancellation_error_types=(ControlSignal,),
    )

    def __init__(self, *, http_client: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self._http_client = http_client
        self._inferred: dict[str, Model] = {}

    @property
    def in_durable_context(self) -> bool:
        """Whether there is a run here, and the caller is not inside one of its steps."""
        return scope_or_none() is not None

    def get_durable_operation_backend(self) -> DurableOperationBackend[Any]:
        """Return what makes steps of an agent's operations."""
        config = RoleBasedOperationConfig[Options](
            model={}, event={}, capability={}, tool={}, resolve_tool=_options_of_tool
        )
        return _Backend(agent_name=self.name, default_model_id=self.default_model_id, config=config)

    # --- what must be the same at a replay

    def get_default_run_id(self) -> str | None:
        """Return the agent run's id."""
        return str(uuid7()) if self.in_durable_context else None

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Return the conversation's id."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:  # noqa: ARG002
        """Return when the agent run began."""
        return now() if self.in_durable_context else None

    # --- models

    async def resolve_model_id(
        self, ctx: ModelResolutionContext[AgentDepsT], *, model_id: str
    ) -> Model | None:
        """Return the model of a name, with a durable HTTP client; None for `infer_model`'s own."""
        found = await super().resolve_model_id(ctx, model_id=model_id)
        if found is not None or not self.in_durable_context:
            return found
        if model_id not in self._inferred:
            try:
                self._inferred[model_id] = infer_model(model_id, self._provider)
            except TypeError:  # a provider that takes no HTTP client
                return None
        return self._inferred[model_id]

    def _provider(self, name: str) -> Provider[Any]:
        if self._http_client is None:
            self._http_client = durable_client()
        made: Provider[Any] = infer_provider_class(name)(http_client=self._http_client)  # type: ignore[call-arg]
        return made

    def _is_recorded(self, request_context: ModelRequestContext) -> bool:
        """Say whether the transport records what a model does: it is no step's matter then."""
        model: Any = request_context.model
        while isinstance(model, WrapperModel):
            model = model.wrapped
        # The providers' libraries keep their HTTP client there.
        return is_durable(getattr(getattr(model, "client", None), "_client", None))

    async def wrap_model_request(
        self, ctx: RunContext[AgentDepsT], *, request_context: ModelRequestContext,
        handler: WrapModelRequestHandler,
    ) -> ModelResponse:  # fmt: skip
        """Make a step of a model request, unless the transport records it."""
        if self._is_recorded(request_context):
            return await handler(request_context)
        return await super().wrap_model_request(
            ctx, request_context=request_context, handler=handler
        )

    async def before_model_request(
        self, ctx: RunContext[AgentDepsT], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """See `wrap_model_request`."""
        if self._is_recorded(request_context):
            return request_context
        return await super().before_model_request(ctx, request_context)

    async def prepare_model_request(
        self, ctx: RunContext[AgentDepsT], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """See `wrap_model_request`."""
        if self._is_recorded(request_context):
            return request_context
        return await super().prepare_model_request(ctx, request_context)

    async def wrap_run(
        self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler
    ) -> AgentRunResult[Any]:
        """Let waits for the outside be durable ones."""
        if not self.in_durable_context:
            return await super().wrap_run(ctx, handler=handler)
        with external_event_scope(_Waiter()):
            return await super().wrap_run(ctx, handler=handler)


class _Backend(JournalCallableOperationBackend[Options]):
    """Runs an agent's operations as steps and effects of the current run."""

    async def execute(
        self, *, operation_id: DurableOperationId, name: str, body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...], config: Options,
    ) -> object:  # fmt: skip
        """Run one operation. The journal tells operations by name and place, not by content."""
        del operation_id, cache_key
        options = dict(config)
        kind = effect if options.pop("effect", False) else step

        async def operation() -> Any:
            return await body()

        return await kind(name=name, **options)(operation)()


def _options_of_tool(
    operation_id: DurableOperationId, tool: Any, tool_name: str
) -> Options | Literal[False]:
    """Return how a tool is run: as its metadata says; False if it is a step by itself."""
    del operation_id
    if tool is None:
        return {}
    own = getattr(getattr(tool, "toolset", None), "tools", {}).get(tool_name)
    if hasattr(getattr(own, "function", None), "durable_step"):
        return False
    said = (tool.tool_def.metadata or {}).get(METADATA, {})
    return False if said is False else dict(said)


@dataclass
class _Waiter(ExternalEventWaiter):
    """Waits for answers from outside as for signals."""

    async def wait(
        self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None
    ) -> JsonValue:
        """Ask once, and wait for the signal that answers."""
        signal = f"{name[:100].replace('/', '-')} {uuid7()}"
        token = f"runs/{current_run().id}/signals/{signal}"
        answer: JsonValue = await step.run(f"ask {name}"[:200], ask, token)
        if answer is not None:
            return answer
        try:
            payload: JsonValue = await wait_for_signal(signal, timeout=timeout, once=True)
        except SignalTimeout as error:
            raise ExternalEventError(str(error)) from error
        if isinstance(payload, dict) and set(payload) == {_FAILED}:
            raise ExternalEventError(str(payload[_FAILED]))
        return payload
