"""The demo model: built from the text under ``demo/corpus``, small enough to commit.

``python -m engines.demo build`` rebuilds it; ``python -m engines.demo ask`` tries it.
"""
