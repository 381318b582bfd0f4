"""Starts the whole system on one machine, for ``bin/serve`` and for the tests."""
