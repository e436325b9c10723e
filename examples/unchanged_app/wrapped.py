"""The app beside this file, made durable without a change: its routes are named by pattern.

    cd examples/unchanged_app
    durable run wrapped:app
    curl -N 127.0.0.1:8000/report

Kill it in the middle (kill -9), start it again, `durable attach last`: the report goes on.
After a crash the handler runs again from its beginning, and what readers have seen already is
checked against the journal and not sent twice. So a handler without steps has to produce the
same bytes again, as this one does. One that asks a model does not: there, record the call in a
`step`, as in starlette_chat.py.
"""

from __future__ import annotations

from app import app as unchanged

from durable_endpoints import DurableMiddleware

app = DurableMiddleware(unchanged, store="sqlite:///unchanged.db", routes=["/report"])
