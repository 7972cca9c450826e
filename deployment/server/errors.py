"""The one error that callers see, in OpenAI's shape on every route."""

from __future__ import annotations

from collections.abc import Mapping


class RequestError(Exception):
    """A request that is answered with an error: HTTP status, OpenAI's `type`, `param` and `code`, extra headers."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        self.body = {
            "error": {
                "message": message,
                "type": "rate_limit_error" if status == 429 else kind,
                "param": param,
                "code": code,
            }
        }
