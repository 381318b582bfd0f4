"""Whether this process may go on serving."""

from collections.abc import Callable
from datetime import datetime

from store.sql.tables import now


class Lifecycle:
    """Set up once per process; its entry point says how to find out that it was told to stop."""

    def __init__(self) -> None:
        self.started_at: datetime = now()
        #: Replaced by whoever runs the process (gunicorn's hook, the gRPC server).
        self.is_stopping: Callable[[], bool] = lambda: False

    @property
    def stopping(self) -> bool:
        return self.is_stopping()
