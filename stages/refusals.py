"""What an error means that MLflow answers with, or instead of an answer."""

from lightning_modules.errors import PipelineError
from stages.scrub import scrubbed

_FINAL_ERRORS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
_BROKEN = ("DatabaseError)", "OperationalError)", "InternalError)")  # of what the store's driver raised
_SILENCE = "failed with exception"  # stands in what MLflow raises where a request found nobody


def is_final(error: Exception) -> bool:
    """Whether trying again cannot help: not a silent, broken or unwilling server, but a wrong request."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, PipelineError) or any(kind in str(error) for kind in _BROKEN):
        return False  # a database that is broken or cannot be upgraded; MLflow itself calls it a bad request
    if isinstance(error, MlflowException):
        return error.error_code in _FINAL_ERRORS
    return not isinstance(error, RequestException)


def trouble(error: Exception) -> str:
    """Why the server takes nothing now, as the end of a sentence about it."""
    if isinstance(error, ImportError):  # of MLflow itself
        return f"cannot be told ({_first_line(error)})"
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    answer = getattr(error, "response", None)  # of an artifact, which is not sent as the rest is
    status = error.get_http_status_code() if isinstance(error, MlflowException) else getattr(answer, "status_code", 0)
    if status == 401:
        return "does not know MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD"
    if status == 403:
        return f"does not allow it ({_first_line(error)})"
    silent = _SILENCE in str(error) or (answer is None and isinstance(error, RequestException))
    return "does not answer" if silent else f"cannot take it ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return scrubbed((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
