"""Turns what other libraries hand out into layers for a cache, one file per kind; used by AttentionCache alone."""
