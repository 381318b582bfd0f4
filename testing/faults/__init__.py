"""Faults that are injected while streams run, and clients that see what comes of it. Tests and bench run them."""
