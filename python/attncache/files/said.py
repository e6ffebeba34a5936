"""What a file or a manifest says of a cache beside its layers: tokens and metadata, read, checked and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from attncache.files.errors import damaged
from attncache.tokens import Tokens, checked_tokens

if TYPE_CHECKING:
    from attncache.cache import AttentionCache


class Said(NamedTuple):
    """The entries of a file beside its layers.

    Attributes:
        tokens: of each key, as the cache has them.
        query_tokens: of each query, where they are others.
        metadata: the user's.
    """

    tokens: Tokens | None = None
    query_tokens: Tokens | None = None
    metadata: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, cache: AttentionCache) -> Said:
        """What a cache says."""
        return cls(cache._tokens, cache._query_tokens, cache._metadata)

    def entries(self) -> dict[str, Any]:
        """The JSON values that are written; nothing for what is not there."""
        values = {"tokens": self.tokens, "query_tokens": self.query_tokens, "metadata": dict(self.metadata) or None}
        return {name: value for name, value in values.items() if value is not None}

    def give_to(self, cache: AttentionCache) -> None:
        """Let a cache say the same."""
        cache._tokens, cache._query_tokens, cache._metadata = self


def read_said(entry: Callable[[str], Any], path: Path) -> Said:
    """What a file says.

    Args:
        entry: gives the JSON value of an entry by its name, None if there is none.
        path: how errors name the file.

    Raises:
        DamagedFileError: an entry is of the wrong kind.
    """
    tokens, query_tokens = (_tokens(entry(name), name, path) for name in ("tokens", "query_tokens"))
    metadata = entry("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise damaged(path, "metadata", "must be a JSON object", type(metadata).__name__)
    return Said(tokens, query_tokens, MappingProxyType(metadata or {}))


def _tokens(tokens: Any, name: str, path: Path) -> Tokens | None:
    """Tokens as a file has them; they need not fit its layers, as those of a cache need not after more pushes."""
    for item in (tokens, *tokens) if isinstance(tokens, list) else (tokens,):
        if isinstance(item, dict) or isinstance(tokens, str):
            raise damaged(path, name, "must be lists of strings", repr(item)[:80])
    try:
        return checked_tokens(tokens, ())
    except (TypeError, ValueError) as error:
        raise damaged(path, name, "must be lists of strings", error) from error
