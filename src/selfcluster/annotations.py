"""Types that annotations of several floors name. No torch here: files that must not import it import this one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

# what `open_source` takes: a path, an address, a name such as "builtin:digits", or the images themselves
Data: TypeAlias = Union[str, "os.PathLike[str]", "np.ndarray"]
# rows, labels or scores: whatever `np.asarray` takes, and tensors
ArrayLike: TypeAlias = Union["npt.ArrayLike", "torch.Tensor"]
