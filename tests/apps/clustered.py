"""The crash app on a store of several nodes: CLUSTER_STORE."""

from __future__ import annotations

import os

from tests.apps.crashy import build

app = build(store=os.environ["CLUSTER_STORE"])
