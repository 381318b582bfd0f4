"""The token log: a Redis stream for each request, written by one worker at a time, followed by anyone.

``entries`` are its parts; ``log`` reads it and holds the scripts; ``publisher`` and ``writer`` are the
worker's side, ``hub``, ``subscription`` and ``follower`` the reader's; ``attempts`` decides who goes on,
``outcomes`` how it ended.
"""
