"""Errors of the data floor: an image that cannot be used, and data that cannot be used as asked."""

from __future__ import annotations

# A later attempt may succeed: the storage was away, or memory was short.
PASSING = frozenset({"read_error", "vanished", "no_memory", "timeout"})


class BadImage(Exception):
    """An image that cannot be used: `reason` is one word to count by, `detail` a sentence for a person.

    Reasons from decoding: empty, not_an_image, lfs_pointer, unsupported, truncated, damaged, too_large, too_small,
    not_finite. Reasons from reading: vanished, not_regular, no_permission, read_error, no_memory, timeout.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class DataError(ValueError):
    """Data that cannot be used as asked. The message names the data and says what to do."""


class LabelsError(DataError):
    """Labels that were requested and are not available. The message names the classes that exist."""
