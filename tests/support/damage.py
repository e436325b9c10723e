"""Values in a database that its schema would refuse, as a flipped bit can make them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


def change_row(file: Path, table: str, change: str, *values: Any) -> int:
    """Update rows of a table by `<column> = <value> where …`; return how many."""
    with closing(sqlite3.connect(file)) as database:
        (schema,) = database.execute("pragma schema_version").fetchone()
        database.execute("pragma writable_schema = on")
        database.execute("pragma ignore_check_constraints = on")
        sought = "select sql from sqlite_master where name = ?"
        (sql,) = database.execute(sought, (table,)).fetchone()
        loose = sql.replace(") strict, without rowid", ") without rowid").removesuffix("strict")
        assert loose != sql
        rewrite = "update sqlite_master set sql = ? where name = ?"
        database.execute(rewrite, (loose, table))
        database.execute(f"pragma schema_version = {schema + 1}")
        database.commit()
        changed = database.execute(f"update {table} set {change}", values).rowcount
        database.execute(rewrite, (sql, table))
        database.execute(f"pragma schema_version = {schema + 2}")
        database.commit()
    return changed
