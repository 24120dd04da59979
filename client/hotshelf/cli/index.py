"""`hotshelf db`: the daemon's index, read-only.

Invariant: it is opened with ``mode=ro``, never ``immutable`` (which ignores the WAL of a living daemon) and never for
writing (a second checkpointer may corrupt it).
"""

from __future__ import annotations

import csv
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import quote

import click

from hotshelf.cli.output import Output, table
from hotshelf.cli.verb import client, verb
from hotshelf_shared.errors import HotshelfError, InvalidRequest, NotFound
from hotshelf_shared.wire import nearest

BUSY_S = 5.0


@click.group("db", epilog="\b\nExample:\n  hotshelf db query 'SELECT source, outcome FROM v_requests LIMIT 5'")
def db() -> None:
    """Read the index. The views v_* are stable; everything else in it may change."""


@verb("uri", example='sqlite3 "$(hotshelf db uri)"')
def uri(out: Output) -> None:
    """Print the URI with which to open the index read-only."""
    found = index_uri()
    out.result({"uri": found}, human=[found], quiet=[found])


@verb("query", example="hotshelf db query 'SELECT * FROM v_waste' --format json")
@click.argument("sql")
def query(out: Output, *, sql: str) -> None:
    """Run one SELECT. quiet prints values only, separated by tabs."""
    with opened() as index:
        cursor = index.execute(sql)
        head = [column[0] for column in cursor.description or ()]
        rows = cursor.fetchall()
    body = [dict(zip(head, row, strict=True)) for row in rows]
    quiet = ("\t".join("" if cell is None else str(cell) for cell in row) for row in rows)
    out.result(body, human=table(head, rows), quiet=quiet)


@verb("export", example="hotshelf db export v_requests --as csv > requests.csv")
@click.argument("view")
@click.option("--as", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True, help="Of what form.")
def export(out: Output, *, view: str, form: str) -> None:
    """Print a whole view."""
    with opened() as index:
        views = [name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
        if view not in views:
            raise NotFound(f"the index has no view {view!r}", hint=nearest(view, views))
        cursor = index.execute(f'SELECT * FROM "{view}"')
        head = [column[0] for column in cursor.description]
        if form == "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(cursor)
            return
        rows = [dict(zip(head, row, strict=True)) for row in cursor]
    Output("json").result(rows)
    out.note(f"{len(rows)} rows")


def index_uri() -> str:
    """``file:…?mode=ro`` of the index below the store named here, else of the one that the daemon names."""
    environ, store = os.environ, click.get_current_context().find_root().params.get("store")
    path = environ.get("HOTSHELF_INDEX__PATH")
    if path is None or store is not None:
        store = store or environ.get("HOTSHELF_STORE") or environ.get("PIPELINE_STORE")
        path = f"{store}/index/index.db" if store else str(client().status().get("index") or "/shelf/index/index.db")
    return f"file:{quote(os.path.abspath(path))}?mode=ro"


@contextmanager
def opened() -> Iterator[sqlite3.Connection]:
    where = index_uri()
    try:
        with closing(sqlite3.connect(where, uri=True, timeout=BUSY_S)) as index:
            index.execute("SELECT 1 FROM sqlite_master").fetchone()  # opening reads nothing yet
            yield _checked(index)
    except sqlite3.OperationalError as error:
        if "unable to open" in str(error):
            hint = "Set HOTSHELF_STORE to where the shelf is mounted here, and read it as the daemon's user or group."
            raise NotFound(f"cannot open the index {where}: {error}", hint=hint) from error
        raise InvalidRequest(f"the index says: {error}", hint="`hotshelf db export VIEW` knows the views' names.") from error
    except (sqlite3.ProgrammingError, sqlite3.Warning) as error:
        raise InvalidRequest(f"the index says: {error}", hint="Give one statement, and only SELECT.") from error
    except sqlite3.Error as error:
        raise HotshelfError(f"the index says: {error}", hint="`hotshelf doctor` examines it.") from error


def _checked(index: sqlite3.Connection) -> sqlite3.Connection:
    index.execute("PRAGMA query_only = ON")
    return index


db.add_command(uri)
db.add_command(query)
db.add_command(export)
VERBS = (db,)
