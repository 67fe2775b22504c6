"""What a server accepts and how long it waits: one place for every number, shown by GET /info."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: of a request's body, chunked ones too.
        texts: instances of a request.
        text_characters: of each text.
        queue_texts: instances of all requests that are accepted and not yet answered.
        requests: that are being read or answered at once.
        deadline_seconds: from the last byte of a request to its answer.
        body_seconds: from the first byte of a body to the last; as long may a client take to read an answer.
        header_seconds: from a connection, or the answer before, to the end of a request's headers.
        keep_alive_seconds: that a connection without a request stays open.
        grace_seconds: that accepted requests have after SIGTERM; above their deadline none of them is lost.
        batch_tokens: of a batch, padding counted.
        batch_rows: of a batch.
    """

    body_bytes: int = 1_000_000
    texts: int = 32
    text_characters: int = 20_000
    queue_texts: int = 256
    requests: int = 512
    deadline_seconds: float = 20.0
    body_seconds: float = 10.0
    header_seconds: float = 10.0
    keep_alive_seconds: float = 5.0
    grace_seconds: float = 25.0
    batch_tokens: int = 4096
    batch_rows: int = 32

    def as_json(self) -> dict[str, float]:
        """Return the limits by name."""
        return dataclasses.asdict(self)
