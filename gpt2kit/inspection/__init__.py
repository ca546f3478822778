"""What is inside a checkpoint, and inside a forward pass.

Names are imported when the first of them is used, so that options can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.inspection.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("gpt2kit.inspection.public"), name)
