"""What an error means that MLflow answers with, or instead of an answer."""

import re

from stages.scrub import scrubbed

_WRONG_VALUE = "INVALID_PARAMETER_VALUE"
_FINAL_ERRORS = {_WRONG_VALUE, "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
_NOT_NOW = {401, 403, 408, 425, 429}  # HTTP's answers to what may be taken from somebody else, or later
_OF_DATABASE = re.compile(r"sqlalche\.me/e/\w+/(\w+)")  # at the end of what SQLAlchemy raises, with its kind
_WRONG_DATA = "9h9h"  # the kind of a value that a column cannot hold
_SILENCE = ("failed with exception", "failed with timeout exception")  # what MLflow raises where nobody answered
_UNABLE = "error responses"  # stands there, too, where the answer was an error such as 500
_NO_ANSWER = "does not answer"
_OF_ONE_RUN = ("does not allow it", "cannot take it")  # begin what may be said of one run alone


def is_final(error: Exception, begins: bool = False) -> bool:
    """Whether trying again cannot help: not a silent, broken or unwilling server or disk, but a wrong request.

    In doubt it is not: what waits without need can still be sent, what is left out is lost. `begins`: the request was
    to begin a run, without which all that it logs would be lost, so that only a wrong value is a reason.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):  # a bad request is also what it calls most errors of its database
        kinds = _OF_DATABASE.findall(str(error))
        final = {_WRONG_VALUE} if begins else _FINAL_ERRORS
        return error.error_code in final and (not kinds or kinds[-1] == _WRONG_DATA)
    if begins:
        return False
    if isinstance(error, RequestException):  # of an artifact
        status = 0 if error.response is None else error.response.status_code
        return 400 <= status < 500 and status not in _NOT_NOW
    return isinstance(error, ValueError | TypeError) and not isinstance(error, OSError)


def trouble(error: Exception) -> str:
    """Why the server takes nothing now, as the end of a sentence about it."""
    if isinstance(error, ImportError):  # of MLflow itself
        return f"cannot be told ({first_line(error)})"
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    answer = getattr(error, "response", None)  # of an artifact, which is not sent as the rest is
    status = error.get_http_status_code() if isinstance(error, MlflowException) else getattr(answer, "status_code", 0)
    if status == 401:
        return "does not know MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD"
    if status == 403:
        return f"does not allow it ({first_line(error)})"
    silent = any(text in str(error) for text in _SILENCE) and _UNABLE not in str(error)
    silent = silent or (answer is None and isinstance(error, RequestException))
    return _NO_ANSWER if silent else f"cannot take it ({first_line(error)})"


def is_of_one_run(told: str) -> bool:
    """Whether a server of which `trouble` said so may take what another run logged."""
    return told.startswith(_OF_ONE_RUN)


def first_line(error: Exception) -> str:
    """What it says, without secrets and cut short; where it says nothing, its name."""
    return scrubbed((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
