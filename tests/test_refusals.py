"""Which errors of MLflow, of what is below it and of the way there mean that trying again cannot help."""

import json
import sqlite3
from collections.abc import Callable
from errno import ENOSPC, ESTALE

import pytest
import requests
import sqlalchemy as sa
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.db.utils import _get_managed_session_maker
from sqlalchemy import orm

from lightning_modules.errors import PipelineError
from stages.refusals import is_final, is_of_one_run, trouble


class Base(orm.DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    key: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    needed: orm.Mapped[str] = orm.mapped_column(nullable=False)


def answer(error: Exception) -> RestException:
    """As MLflow's server hands on what its database raised."""
    maker = _get_managed_session_maker(orm.sessionmaker(sa.create_engine("sqlite://")), "sqlite")
    with pytest.raises(MlflowException) as caught, maker():
        raise error
    return RestException(json.loads(caught.value.serialize_as_json()))


def of_driver(error: Exception) -> Exception:
    return sa.exc.DBAPIError.instance("INSERT", {}, error, sqlite3.Error)


def full_pool() -> Exception:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with pytest.raises(sa.exc.TimeoutError) as caught, engine.connect(), engine.connect():
        pass
    return caught.value


def after_a_failed_flush() -> Exception:
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Row(key=1))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        with pytest.raises(sa.exc.PendingRollbackError) as caught:
            session.connection()
    return caught.value


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (full_pool, "QueuePool limit of size 1 overflow 0 reached, connection timed out"),
        (after_a_failed_flush, "This Session's transaction has been rolled back"),
        (lambda: of_driver(sqlite3.InterfaceError("connection already closed")), "connection already closed"),
        (lambda: of_driver(sqlite3.DatabaseError("file is not a database")), "file is not a database"),
        (lambda: of_driver(sqlite3.OperationalError("database is locked")), "database is locked"),
    ],
)
def test_what_ails_the_servers_database_passes(make: Callable[[], Exception], says: str) -> None:
    told = answer(make())
    assert says in str(told)
    assert not is_final(told)
    assert is_of_one_run(trouble(told))


def test_wrong_requests_are_final() -> None:
    assert is_final(answer(of_driver(sqlite3.DataError("value too long for type character varying(250)"))))
    for code in (BAD_REQUEST, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST):
        assert is_final(MlflowException("wrong", code))
    assert is_final(ValueError("the run could not be created"))
    assert is_final(TypeError())


def test_a_run_is_given_up_for_a_wrong_value_alone() -> None:
    assert is_final(MlflowException("too long a tag", INVALID_PARAMETER_VALUE), begins=True)
    for error in (MlflowException("bad", BAD_REQUEST), MlflowException("gone", RESOURCE_DOES_NOT_EXIST), ValueError()):
        assert not is_final(error, begins=True)


class EndpointConnectionError(Exception):
    """As botocore has one, of no other kind."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(ENOSPC, "No space left on device"),
        OSError(ESTALE, "Stale file handle"),
        EndpointConnectionError("Could not connect to the endpoint URL"),
        requests.exceptions.InvalidURL("no address, and a ValueError too"),
        PipelineError("MLflow's database cannot be upgraded"),
    ],
)
def test_disks_and_stores_of_files_may_come_back(error: Exception) -> None:
    assert not is_final(error)


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (404, True), (413, True), (415, True), (422, True)]
    + [(status, False) for status in (401, 403, 408, 425, 429, 500, 502, 503, 507)],
)
def test_an_artifact_is_refused_by_what_the_answer_says(status: int, final: bool) -> None:
    response = requests.Response()
    response.status_code = status
    with pytest.raises(requests.HTTPError) as caught:
        response.raise_for_status()
    assert is_final(caught.value) is final


def test_nobody_an_error_and_too_late_an_answer_are_told_apart() -> None:
    request = "API request to http://mlflow/api failed with"
    unable = f"{request} exception Max retries exceeded (Caused by ResponseError('too many 500 error responses'))"
    assert trouble(MlflowException(unable)).startswith("cannot take it")
    for silent in (f"{request} exception Connection refused", f"{request} timeout exception Connection timed out"):
        assert trouble(MlflowException(silent)) == "does not answer"
        assert not is_of_one_run(trouble(MlflowException(silent)))
    assert trouble(requests.ConnectionError()) == "does not answer"
