"""Array aliases used in every signature, and the words for labels and levels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
BoolArray: TypeAlias = NDArray[np.bool_]
AnyArray: TypeAlias = NDArray[Any]
Level: TypeAlias = Hashable
"""A level of a state axis or a choice: an int, a str, a bool or a float."""
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called as ``progress(done, total, message)``; the command line draws bars with it."""
