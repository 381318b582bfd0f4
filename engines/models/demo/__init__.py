"""The demo model: built from the text under ``demo/corpus``, small enough to commit.

``python -m engines.models.demo build`` rebuilds it; ``python -m engines.models.demo ask`` tries it.
"""
