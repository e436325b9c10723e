"""Who did what here: every action is logged, and the last ones can be listed."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from durable_endpoints.console.inert import inert

KEPT: Final = 500
logger = logging.getLogger("durable_endpoints.audit")


@dataclass(frozen=True, slots=True)
class Deed:
    """One action, done or refused."""

    at_ms: int
    who: str
    role: str
    client: str
    action: str
    run_id: str
    outcome: str


class Audit:
    """The actions taken through this process; the log has all of them, this list the last."""

    def __init__(self) -> None:
        self.deeds: deque[Deed] = deque(maxlen=KEPT)

    def note(self, deed: Deed) -> None:
        """Log an action, once its outcome is known."""
        self.deeds.appendleft(deed)
        logger.info(
            "%s run=%s by=%s role=%s from=%s: %s",
            deed.action, deed.run_id, inert(deed.who), deed.role, deed.client, deed.outcome,
        )  # fmt: skip
