"""Whether the data of a run has changed since it began: names, sizes, and the contents of a sample of the files.

Modification times alone mean nothing: data that is copied to another disk gets new ones. They are kept because equal
times prove that nothing changed, without reading anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from selfcluster.data.errors import BadImage
from selfcluster.data.listing import Listing
from selfcluster.data.order import shuffled

SAMPLE = 32  # files whose contents are hashed

Read = Callable[[int], bytes | np.ndarray]


def summarize(listing: Listing, read: Read, content_only: bool) -> dict[str, object]:
    """Return what a later run needs to tell whether the data has changed.

    Args:
        listing: the images.
        read: returns image i.
        content_only: the listing's times are hashes of the whole content (arrays): no sample is needed.
    """
    names = listing.names
    ids, sizes, mtimes = hashed(names.buffer, names.offsets), hashed(listing.sizes), hashed(listing.mtimes)
    return {
        "images": len(names),
        "bytes": int(listing.sizes.sum()),
        "newest": int(listing.mtimes.max()),
        "ids": ids,
        "sizes": sizes,
        "mtimes": mtimes,
        "sample": {"all": mtimes} if content_only else _sample(listing, read),
        "fingerprint": hashed(ids.encode(), sizes.encode(), mtimes.encode()),
    }


def difference(now: dict[str, Any], earlier: dict[str, Any]) -> str:
    """Return in words what has changed between two summaries; empty where nothing has."""
    if now["fingerprint"] == earlier.get("fingerprint"):
        return ""
    if now["images"] != earlier.get("images"):
        return f"there were {earlier.get('images')} images, there are {now['images']}"
    if now["ids"] != earlier.get("ids"):
        return f"still {now['images']} images, but under other names"
    if now["sizes"] != earlier.get("sizes"):
        return f"the same names, but other sizes: {earlier.get('bytes')} bytes then, {now['bytes']} now"
    before = earlier.get("sample") or {}
    changed = [name for name, value in now["sample"].items() if before.get(name, value) != value]
    if changed:
        return f"the same names and sizes, but other contents, e.g. of {changed[0]!r}"
    return ""


def hashed(*parts: bytes | np.ndarray) -> str:
    """Return 32 hexadecimal digits that identify bytes and integer arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).astype("<i8").tobytes())
    return digest.hexdigest()


def _sample(listing: Listing, read: Read) -> dict[str, str]:
    """Hashes of the contents of up to `SAMPLE` files, by id; files that cannot be read now are left out."""
    sample = {}
    for i in np.sort(shuffled(len(listing.names), 0, "sample of contents")[:SAMPLE]).tolist():
        try:
            data = read(i)
        except BadImage:
            continue
        content = data if isinstance(data, bytes) else data.tobytes()
        sample[listing.names[i]] = hashlib.blake2b(content, digest_size=8).hexdigest()
    return sample
