"""openai-agents: agents whose model requests, tools and sessions belong to the run around them.

    set_default_openai_client(AsyncOpenAI(http_client=durable_client()), use_for_tracing=False)
    agent = durable_agent(Agent(name="helper", tools=[...], handoffs=[...]))

or, for one call, `RunConfig(model_provider=durable_provider())`. Needs the extra `openai-agents`.
Outside a run everything is what it would be without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from agents import Agent, FunctionTool, Handoff, Runner, RunResult
from agents.items import ToolApprovalItem, TResponseInputItem
from agents.memory import Session, SessionSettings
from agents.models.openai_provider import OpenAIProvider
from agents.tool_context import ToolContext
from openai import AsyncOpenAI
from pydantic import BaseModel

from durable_endpoints import approval, effect, step
from durable_endpoints.integrations.openai_agents_mcp import wrap_server
from durable_endpoints.limits import NAME_CHARS_MAX
from durable_endpoints.llm import durable_client

AgentT = TypeVar("AgentT", bound=Agent[Any])
_MARK: Final = "durable_endpoints"


def durable_provider(
    *, http_client: Any = None, use_responses: bool | None = None, **options: Any
) -> OpenAIProvider:
    """Return a model provider for `RunConfig(model_provider=…)` whose requests are recorded.

    `http_client` is a `durable_client()`, made if not given; `options` are those of `AsyncOpenAI`.
    """
    client = AsyncOpenAI(http_client=http_client or durable_client(), **options)
    return OpenAIProvider(openai_client=client, use_responses=use_responses)


def durable_agent(agent: AgentT, tools: Mapping[str, Mapping[str, Any]] | None = None) -> AgentT:
    """Make steps of an agent's function tools, and of those of the agents it hands off to.

    `tools` says by name how: `{"refund": {"effect": True}}`, and what `step` and `effect` take
    (`retry`, `timeout`, `rate_limit`). Tools whose functions are steps or effects themselves, or
    that wait for something, are to be left as they are: `{"ask": None}`. Agents used as tools are
    left as they are, too: what they do is recorded, step by step.

    The tools of its `mcp_servers` are steps if they say that they are read-only or idempotent,
    effects if not, unless `tools` says otherwise; what the servers list is recorded, too. A replay
    asks no server (needs the extra `mcp`).

    Changes the tools and servers in place, once; returns the agent.
    """
    _wrap_agent(agent, dict(tools or {}), set())
    return agent


def _wrap_agent(agent: Agent[Any], options: dict[str, Any], seen: set[int]) -> None:
    if id(agent) in seen:
        return
    seen.add(id(agent))
    for tool in agent.tools:
        if isinstance(tool, FunctionTool) and not getattr(tool, "_is_agent_tool", False):
            own = options.get(tool.name, {})
            if own is not None:
                _wrap_tool(tool, dict(own))
    for server in agent.mcp_servers:
        wrap_server(server, options)
    for other in agent.handoffs:
        inner = other if isinstance(other, Agent) else _agent_of(other)
        if inner is not None:
            _wrap_agent(inner, options, seen)


def _agent_of(handoff: Handoff[Any, Any]) -> Agent[Any] | None:
    reference = getattr(handoff, "_agent_ref", None)
    found = reference() if callable(reference) else None
    return found if isinstance(found, Agent) else None


def _wrap_tool(tool: FunctionTool, options: dict[str, Any]) -> None:
    invoke = tool.on_invoke_tool
    if getattr(invoke, _MARK, False):
        return
    kind = effect if options.pop("effect", False) else step
    name = f"tool {tool.name}"[:NAME_CHARS_MAX]

    async def invoke_once(context: ToolContext[Any], arguments: str) -> Any:
        async def call(_: str) -> Any:
            return _plain(await invoke(context, arguments))

        return await kind(name=name, **options)(call)(arguments)

    setattr(invoke_once, _MARK, True)
    tool.on_invoke_tool = invoke_once


def _plain(output: Any) -> Any:
    """Return a tool's output as JSON has it: what the model is told is the same."""
    if isinstance(output, BaseModel):
        return output.model_dump(mode="json", exclude_none=True)
    if isinstance(output, list):
        return [_plain(item) for item in output]
    if output is None or isinstance(output, str | int | float | bool | dict):
        return output
    return str(output)


class DurableSession:
    """A session whose reads and changes are steps of the run, each made once.

    `inner` is any session of openai-agents, whose store may be elsewhere. A change is an effect:
    whether items were added by an attempt that a crash cut is looked up in the session itself.
    """

    def __init__(self, inner: Session) -> None:
        self.inner = inner

    @property
    def session_id(self) -> str:
        """The inner session's id."""
        return self.inner.session_id

    @property
    def session_settings(self) -> SessionSettings | None:
        """The inner session's settings."""
        return self.inner.session_settings

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the conversation so far, as it was when it was first asked for."""
        items: list[TResponseInputItem] = await step.run(
            "session get_items", self.inner.get_items, limit
        )
        return items

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add to the conversation."""
        if items:
            add = effect(name="session add_items", verify=self._added)(self._add)
            await add(items)

    async def _add(self, items: list[TResponseInputItem]) -> None:
        await self.inner.add_items(items)

    async def _added(self, _: str, items: list[TResponseInputItem]) -> None:
        if await self.inner.get_items(limit=len(items)) != items:
            raise LookupError("not added yet")

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the last item off the conversation."""
        item: TResponseInputItem | None = await effect.run("session pop_item", self.inner.pop_item)
        return item

    async def clear_session(self) -> None:
        """Forget the conversation."""
        await effect.run("session clear_session", self.inner.clear_session)


@dataclass(frozen=True, slots=True)
class Ask:
    """How people are asked for approvals: see `durable_endpoints.approval`."""

    timeout: float | None = None
    notify: Any = None


async def run_with_approvals(
    agent: Agent[Any], given: Any, *, ask: Ask | None = None, **options: Any
) -> RunResult:
    """Run an agent; where a tool needs approval, wait durably for a person's.

    Each is an approval of the run, named after the tool and its call. `options` are those of
    `Runner.run`.

    Raises: SignalTimeout if nobody answers in time; what `Runner.run` raises.
    """
    ask = ask or Ask()
    result = await Runner.run(agent, given, **options)
    while result.interruptions:
        state = result.to_state()
        for item in result.interruptions:
            await _decide(state, item, ask)
        result = await Runner.run(agent, state, **options)
    return result


async def _decide(state: Any, item: ToolApprovalItem, ask: Ask) -> None:
    name = item.tool_name or "tool"
    call_id = getattr(item.raw_item, "call_id", "")
    decision = await approval(
        f"{name} {call_id}".strip().replace("/", "-"),
        summary=f"{name}({getattr(item.raw_item, 'arguments', '')})",
        timeout=ask.timeout,
        notify=ask.notify,
    )
    if decision:
        state.approve(item)
    else:
        state.reject(item)
