"""The fault matrix: what clients see while processes die under their streams.

``python -m bench.faults`` runs it on the real engine and prints a table.
"""
