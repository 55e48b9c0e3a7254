"""A registered model in a real store; what MLflow says when it fails becomes one line without secrets."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lightning_modules.errors import PipelineError
from stages.registry import Registry, mlflow_errors


def fail(**_: Any) -> NoReturn:
    raise MlflowException("API request to http://me:secret@127.0.0.1:9/api/2.0 failed\nand more")


def test_errors_are_one_line_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"API request to http://127.0.0.1:9/api/2.0 failed"
    with pytest.raises(PipelineError, match=rf"^MLflow could not roll back: {told}$"), mlflow_errors("roll back"):
        fail()
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", fail)
    wanted = Registry(None, "a model").downloaded("runs:/1/answers")
    with pytest.raises(PipelineError, match=rf"^runs:/1/answers cannot be downloaded \({told}\)$"), wanted:
        pass


class Beaten(MlflowClient):
    """Another process gives the alias for the first time a moment before, and the store refuses this one."""

    beaten = False

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if not self.beaten:
            self.beaten = True
            super().set_registered_model_alias(name, alias, "1")
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases")
        super().set_registered_model_alias(name, alias, version)


def test_an_alias_that_another_gives_first_is_given_all_the_same(fresh_store: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(fresh_store.read_bytes())
    client = Beaten(f"sqlite:///{database}")
    client.create_registered_model("shared")
    for _ in range(2):
        client.create_model_version("shared", str(tmp_path))
    registry = Registry(client, "shared")
    registry.set_alias("champion", "2")
    assert registry.alias("champion") == "2"
    with pytest.raises(MlflowException):
        registry.set_alias("challenger", "7")
