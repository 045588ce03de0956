"""Refusals of requests, in the form of OpenAI's errors."""

from collections.abc import Mapping
from typing import Any

_TYPES = {
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
      status: HTTP status.
      message: sentence that says what was got, what was expected and how to mend it.
      param: name of the field that is wrong, or None.
      code: short name of the reason, or None.
      headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Body of the answer, as OpenAI's API has it."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def insist(condition: bool, message: str, param: str | None = None, status: int = 400) -> None:
    """Raises RequestError unless `condition` holds."""
    if not condition:
        raise RequestError(status, message, param)


def later(status: int, message: str, seconds: int, code: str) -> RequestError:
    """Returns a refusal that says after how many seconds to try again."""
    return RequestError(status, message, code=code, headers={"Retry-After": str(seconds)})
