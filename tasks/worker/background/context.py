"""What the handlers of background jobs work with."""

import threading
from dataclasses import dataclass, field

from sqlalchemy.orm import Session, sessionmaker

from settings import Settings


@dataclass(frozen=True)
class HandlerContext:
    """What a handler works with."""

    settings: Settings
    sessions: sessionmaker[Session]
    #: Set when the job was taken away.
    lost: threading.Event = field(default_factory=threading.Event)
    #: Set when the worker was told to stop.
    stopping: threading.Event = field(default_factory=threading.Event)
