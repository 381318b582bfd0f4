"""Tokens set aside for requests before they run, and counted when they end: a minute's, and those of a quota."""
