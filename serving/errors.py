"""Errors as clients see them, in OpenAI's form, without paths, addresses or tracebacks."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ApiError(Exception):
    """A refusal that goes to the client. It pickles, so that deployments can hand it on as a value.

    Args:
        status: HTTP status.
        code: short machine-readable reason, e.g. 'video_too_large'.
        message: what was found and what to do; never a path or an address.
        param: the request field at fault, dotted.
        retry_after_s: value of ``Retry-After`` for errors that pass.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, code, message, param, retry_after_s)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """OpenAI's error type of the status."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 404:
            return "not_found_error"
        if self.status in (429, 503):
            return "overloaded_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """``{"error": {...}}`` as OpenAI's clients read it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def bad_video(code: str, message: str) -> ApiError:
    """422 for a video that cannot be used."""
    return ApiError(422, code, message, "messages")


def invalid(param: str, message: str) -> ApiError:
    """422 for a request field."""
    return ApiError(422, "invalid_value", message, param)


def overloaded(what: str, retry_after_s: int) -> ApiError:
    """503 for a full queue: the client is told when to come back instead of waiting without end."""
    return ApiError(503, "overloaded", f"{what}; try again in {retry_after_s} s", retry_after_s=retry_after_s)


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Around what writes a video's files: 503 where the disk or a quota is full. Other errors are faults and go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        message = "there is no room for the video now; try again"
        raise ApiError(503, "no_space", message, retry_after_s=10) from error


def internal_error() -> ApiError:
    """500 for a fault of the service inside, of which the log tells."""
    return ApiError(500, "internal_error", "the request failed inside; nothing to mend in it")
