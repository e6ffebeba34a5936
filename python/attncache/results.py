"""The result types of queries that return more than one array."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache.text import token_table
from attncache.tokens import AnswerTokens


class TopK(NamedTuple):
    """The k heaviest positions of each selected row or column, heaviest first, and their weights.

    If the cache has tokens, so has its answer: ``tokens()`` gives them and the repr shows them.

    Attributes:
        positions: int64 array of shape [.., k].
        weights: float32 array of the same shape.
    """

    positions: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def tokens(self) -> list[Any]:
        """The token of each position.

        Returns:
            Strings in lists nested as ``positions`` is, [.., k]; None for a position beyond the tokens of the cache.

        Raises:
            ValueError: the cache had no tokens when it was asked.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.tokens = ["the", "cat"]
        >>> cache.top_k(2, layers=0).tokens()
        [['the', 'cat'], ['cat', 'the']]
        """
        raise ValueError("tokens() needs the tokens of the cache, got an answer without; set cache.tokens before top_k")


class TopKWithTokens(TopK):
    """A TopK that knows what its positions stand for: the same two arrays, a repr to read."""

    _tokens: AnswerTokens | None = None  # what ``_replace`` and ``_make`` leave: their positions are others

    @classmethod
    def of(
        cls, positions: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], tokens: AnswerTokens
    ) -> TopKWithTokens:
        """The answer with its tokens."""
        answer = cls(positions, weights)
        answer._tokens = tokens
        return answer

    def tokens(self) -> list[Any]:
        return super().tokens() if self._tokens is None else self._tokens.tokens(self.positions)

    def __repr__(self) -> str:
        if self._tokens is None:
            return repr(TopK(*self))
        return token_table(self.positions, self.weights, self._tokens)
