"""One registered model in MLflow: its versions with their tags, and the aliases. What register and rollback share.

Every call is one or two requests, about 10 ms each with a server; connecting costs MLflow's import, 2 s.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_modules.errors import PipelineError
from stages.lineage import without_credentials
from stages.scrub import scrubbed
from stages.tracking_store import answers, prepare_store, tracking_uri

LOCK = Path(".pipeline/registry.lock")  # of the workspace: held by whoever moves an alias from here
CHAMPION, CHALLENGER = "champion", "challenger"  # aliases
# What became of a version, in its tag `state`. Promoted: it is champion, or was until a better one came.
PENDING, TAKING_OVER, PROMOTED = "pending", "taking over", "promoted"
CHALLENGING, REFUSED, ROLLED_BACK = "challenger", "refused", "rolled back"


def connect(root: Path, what: str) -> Any:
    """A client of MLflow. Raises PipelineError, which says that `what` did not happen, where MLflow does not answer."""
    uri = tracking_uri(root)
    if not answers(uri):
        raise silent(uri, what)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # an upload may take its time
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ |= {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    import mlflow

    prepare_store(uri, root)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient()


@contextmanager
def mlflow_errors(doing: str) -> Iterator[None]:
    """Makes one line of what MLflow or the way to it says: it could not do `doing`."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        raise PipelineError(f"MLflow could not {doing}: {scrubbed(str(error).splitlines()[0])}") from error


def silent(uri: str, what: str) -> PipelineError:
    """The error where MLflow does not answer."""
    return PipelineError(
        f"MLflow at {without_credentials(uri)} does not answer, so nothing is {what}: start it, and run this again"
    )


class Registry:
    """The versions of the registered model `name`; a version is known by its number, a text as in MLflow."""

    def __init__(self, client: Any, name: str) -> None:
        self.name = name
        self._client = client

    def versions(self) -> dict[str, dict[str, str]]:
        """The tags of every version, the oldest first; empty where nothing was registered by that name."""
        found = self._client.search_model_versions(f"name='{self.name}'")
        return {str(one.version): dict(one.tags) for one in sorted(found, key=lambda one: int(one.version))}

    def alias(self, alias: str) -> str | None:
        """The version that has the alias."""
        models = self._client.search_registered_models(f"name='{self.name}'")
        number = models[0].aliases.get(alias) if models else None
        return None if number is None else str(number)

    def tag(self, number: str, **tags: str) -> None:
        """Sets tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, number, key, value)

    def set_alias(self, alias: str, number: str) -> None:
        """Gives the alias to a version; whichever had it loses it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_registered_model_alias(self.name, alias, number)
        except MlflowException:  # of two that give it for the first time at the same moment the store refuses one
            if self.alias(alias) is None:
                raise
            self._client.set_registered_model_alias(self.name, alias, number)

    def drop_alias(self, alias: str, number: str) -> None:
        """Takes the alias from the version where that has it."""
        if self.alias(alias) == number:
            self._client.delete_registered_model_alias(self.name, alias)

    @contextmanager
    def downloaded(self, uri: str | None) -> Iterator[Path]:
        """A file or folder that MLflow keeps, for as long as the block lasts. Raises PipelineError where it is gone."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        if not uri:
            raise PipelineError("it was never logged")
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
            except (MlflowException, OSError) as error:
                reason = scrubbed(str(error).splitlines()[0])
                raise PipelineError(f"{scrubbed(uri)} cannot be downloaded ({reason})") from error
            yield path
