"""Opens the database of a study through Optuna."""

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from neftune_plugins.errors import NEFTuneError

TRIES = 5
PATIENCE = 60.0  # seconds that SQLite waits for another worker's transaction

Where = str | Path
"""The URL of a database, or the file of an SQLite database."""


def opened(where: Where, heartbeat: int) -> optuna.storages.RDBStorage:
    """Return the storage; creates missing tables. Raises NEFTuneError if it cannot be reached."""
    url, options = _engine(where)
    make = partial(_storage, url, engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=4 * heartbeat)
    for left in reversed(range(TRIES)):
        try:
            storage = make()
            break
        except (*_ERRORS, ImportError, KeyError, IndexError, ValueError) as error:
            # If two workers create the tables at the same moment, one fails and then finds them.
            if not left or not isinstance(error, OperationalError | sqlalchemy.exc.IntegrityError):
                raise NEFTuneError(f"{shown(where)}: {cause(error)}") from None
            time.sleep(1)
    if url.startswith("sqlite"):
        _one_at_a_time(storage.engine)
    return storage


def read(where: Where) -> optuna.storages.RDBStorage | None:
    """Return the storage for reading only; None if it does not exist yet."""
    if isinstance(where, Path) and not where.exists():
        return None
    url, options = _engine(where, "?mode=ro")
    try:
        storage = _storage(url, engine_kwargs=options, skip_table_creation=True, skip_compatibility_check=True)
    except (*_ERRORS, ImportError, KeyError, IndexError, ValueError) as error:
        if isinstance(error, SQLAlchemyError) and "version_info" in str(error):
            return None  # a database without Optuna's tables
        raise NEFTuneError(f"{shown(where)}: {cause(error)}") from None
    return storage


def shown(where: Where) -> str:
    """Return the option with the place of the database, without its password, for messages."""
    if isinstance(where, Path):
        return f"--output {where.parent}: the study's database {where.name}"
    try:
        return f"--storage {sqlalchemy.make_url(where).render_as_string(hide_password=True)}"
    except SQLAlchemyError:
        return f"--storage {where}"


def cause(error: BaseException) -> str:
    """Return the database's own error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    if isinstance(original, KeyError | IndexError):
        return "Optuna reads what is in braces as a template; name a database without them"
    return (str(original).strip() or type(original).__name__).splitlines()[0]


@contextmanager
def problems(where: Where) -> Iterator[None]:
    """Turn errors of the database and of files in the block into NEFTuneErrors that say how to continue."""
    go_on = "The sweep stops here. Fix this, and run the same command to continue"
    try:
        yield
    except _ERRORS as error:
        raise NEFTuneError(f"{shown(where)}: {cause(error)}. {go_on}") from None
    except OSError as error:
        file = "" if error.filename is None else f"{error.filename}: "
        raise NEFTuneError(f"{file}{error.strerror or error}. {go_on}") from None


_ERRORS = (SQLAlchemyError, StorageInternalError)


def _storage(url: str, **options: Any) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(url, **options)


def _engine(where: Where, mode: str = "") -> tuple[str, dict[str, Any]]:
    """Return URL and options of SQLAlchemy's engine.

    The name of a file is neither in the URL nor in Optuna's template, because `?`, `%`, `#` and braces have a meaning
    there.
    """
    if isinstance(where, Path):
        file = f"file:{quote(os.fsencode(where))}{mode}"
        connect: Callable[[], sqlite3.Connection] = partial(
            sqlite3.connect, file, uri=True, timeout=PATIENCE, check_same_thread=False
        )
        return "sqlite:///study.db", {"creator": connect}
    if where.startswith("sqlite"):
        try:
            url = sqlalchemy.make_url(where)
        except SQLAlchemyError as error:
            raise NEFTuneError(f"{shown(where)}: {cause(error)}") from None
        if url.database in (None, "", ":memory:"):
            raise NEFTuneError(f"{shown(where)}: this database is in memory, so that nothing could be resumed; name a "
                               "file: sqlite:///study.db")  # fmt: skip
        return where, {"connect_args": {"timeout": PATIENCE}}
    return where, {}


def _one_at_a_time(engine: sqlalchemy.Engine) -> None:
    """Lock an SQLite database at the beginning of each transaction. Optuna relies on `SELECT ... FOR UPDATE`, which
    SQLite does not have."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_transactions_alone(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def lock_first(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
