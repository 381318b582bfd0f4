"""The running side of the queue."""
