"""Reads what other libraries hand out, so that a cache can be filled with it; capture/ listens to a running model."""
