"""Bad images in words: grouped by reason, with counts, examples, and the flag that would accept them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_EXAMPLES = 3


class Finding(NamedTuple):
    """One image that cannot be used."""

    id: str
    reason: str
    detail: str


@dataclass
class Group:
    """Images that cannot be used for one reason, by their ids. `detail` is that of the first."""

    reason: str
    detail: str
    ids: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.ids)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Return the findings by reason, and the unsupported ones by format too; the largest group first."""
    groups: dict[tuple[str, str], Group] = {}
    for finding in findings:
        kind = finding.detail.partition(":")[0] if finding.reason == "unsupported" else ""
        group = groups.setdefault((finding.reason, kind), Group(finding.reason, finding.detail))
        group.ids.append(finding.id)
    return sorted(groups.values(), key=lambda group: -group.count)


def listed(groups: Sequence[Group]) -> str:
    """Return one line a group: count, reason, examples, and the decoder's sentence for the first of them."""
    lines = []
    for group in groups:
        examples = ", ".join(group.ids[:_EXAMPLES]) + (", ..." if group.count > _EXAMPLES else "")
        lines.append(f"  {group.count} {group.reason}: {examples} ({group.detail})")
    return "\n".join(lines)


def accepting_share(bad: int, total: int) -> float:
    """Return the smallest share of three decimals that `--max-bad` needs so that `bad` of `total` images may be bad.

    >>> accepting_share(32, 96)
    0.334
    """
    share = -(-bad * 1000 // total)
    while int(share / 1000 * total) < bad:
        share += 1
    return min(1.0, share / 1000)
