"""One batch ahead: the next batch is made while the device still computes with the last."""

from __future__ import annotations

from collections.abc import Iterator

from selfcluster.types import Batch


class Ahead(Iterator[Batch]):
    """The batches of an iterator, of which one can be made before it is asked for.

    Args:
        batches: the iterator.
        wanted: False makes nothing ahead. On a CPU it would save no time.

    >>> ahead = Ahead(iter("ab"), wanted=True)
    >>> ahead.prepare()
    >>> list(ahead)
    ['a', 'b']
    """

    def __init__(self, batches: Iterator[Batch], wanted: bool) -> None:
        self._batches, self._wanted = batches, wanted
        self._made: Batch | BaseException | None = None

    def prepare(self) -> None:
        """Make the next batch now; what is raised meanwhile, also the end, is raised when the batch is asked for."""
        if self._wanted and self._made is None:
            try:
                self._made = next(self._batches)
            except Exception as error:
                self._made = error

    def __next__(self) -> Batch:
        made, self._made = self._made, None
        if isinstance(made, BaseException):
            raise made
        return next(self._batches) if made is None else made
