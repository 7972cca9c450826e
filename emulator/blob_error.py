"""An error in Azure Storage's shape."""

from __future__ import annotations


class BlobError(Exception):
    """What a blob request is refused with: the HTTP status, Azure Storage's code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
