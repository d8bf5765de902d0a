from __future__ import annotations

from ..errors import KleinError


class Refused(KleinError):
    """A request that is not run: one sentence, the field it is about, and the status of the answer."""

    def __init__(self, sentence: str, field: str = "", status: int = 400, retry_after: int = 0):
        super().__init__(sentence)
        self.field, self.status, self.retry_after = field, status, retry_after
