"""One request on an engine."""
