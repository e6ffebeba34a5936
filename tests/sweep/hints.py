"""What the general rules do not give, type by type, and the sizes that fields shrink to: all of it is in hints.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ALL: dict[str, Any] = json.loads(Path(__file__).with_name("hints.json").read_text(encoding="utf-8"))
CONFIGS: dict[str, dict[str, Any]] = _ALL["configurations"]
INPUTS: dict[str, dict[str, Any]] = _ALL["inputs"]  # arguments, or ["random" or another maker of Inputs, *shape]
SIZES = {name: int(size) for size, names in _ALL["sizes"].items() for name in names}  # of integers beyond them
ALWAYS = set(_ALL["always"])  # small at every level
KEY_HEADS: dict[str, str] = _ALL["key_heads"]  # where a model has as many key heads as heads, it keeps that
