"""Arrays that compiled code found too short."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["longer"]


def longer(array: npt.NDArray[Any], n: int, fill: int = 0) -> npt.NDArray[Any]:
    """A copy with `n` cells along its last axis, the new ones `fill`; of several axes as of one."""
    grown = np.full((*array.shape[:-1], n), fill, array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown
