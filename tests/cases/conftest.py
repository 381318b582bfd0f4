"""Fixtures of the cases; see ``tests.cases.product``."""

from tests.cases.product import adapters, client, data, product

__all__ = ["adapters", "client", "data", "product"]
