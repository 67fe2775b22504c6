"""What a server says instead of an answer: a status, one line of JSON, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ground.words import one_line

_LONGEST = 1000


class RefusalError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: a word for programs; docs/serving.md lists them.
        message: a line for people.
        field: the place in the request that is wrong, as "instances[0].text_a".
        headers: further ones of the reply.
    """

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.field, self.headers = status, code, field, dict(headers or {})
        self.message = one_line(message)[:_LONGEST]

    @property
    def content(self) -> dict[str, object]:
        """The value of the reply."""
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}

    @property
    def body(self) -> bytes:
        """The line of the reply."""
        return json.dumps(self.content, ensure_ascii=False).encode() + b"\n"


def busy(code: str, message: str, seconds: int = 1) -> RefusalError:
    """Return a refusal of a request that may come again after some seconds."""
    return RefusalError(503, code, message, headers={"retry-after": str(seconds)})
