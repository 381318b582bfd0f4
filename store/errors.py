"""What can go wrong in the shared state."""


class StoreError(Exception):
    """Root of this tree."""


class Superseded(StoreError):
    """A newer attempt owns the token log, or it has ended: nothing more may be written."""


class LogBroken(StoreError):
    """The token log could not be written, by a fault of this software."""
