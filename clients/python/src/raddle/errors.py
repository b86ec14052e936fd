"""What a server answers when it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx


class RaddleError(Exception):
    """A request that the server refused. Branch on `code`; `detail` is for a person."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: int | None = None) -> None:
        self.status = status
        self.problem = problem
        """The whole document: problems of some codes carry further fields."""
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", f"the server answered {status}"))
        request_id = problem.get("request_id")
        self.request_id = None if request_id is None else str(request_id)
        self.retry_after = retry_after
        """Seconds after which it is worth to try again, where the server says so."""
        super().__init__(f"{self.detail} ({status} {self.code})")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.problem, self.retry_after)

    @classmethod
    def of(cls, response: httpx.Response) -> RaddleError:
        """The error in an answer that was read; what is not a server of ours may answer anything."""
        try:
            problem = json.loads(response.content)
        except ValueError:
            problem = None
        fields = problem if isinstance(problem, dict) else {}
        return cls(response.status_code, fields, retry_after(response))


def retry_after(response: httpx.Response) -> int | None:
    """The seconds of `Retry-After`; servers of ours give no dates."""
    text = response.headers.get("retry-after", "")
    return int(text) if text.isascii() and text.isdigit() else None
