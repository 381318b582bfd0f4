"""What can go wrong in the shared state."""


class StoreError(Exception):
    """Root of this tree."""


class Superseded(StoreError):
    """A newer attempt owns the token log, or it has ended: nothing more may be written."""


class LogLost(StoreError):
    """The token log no longer holds what a reader asks for."""
