"""Joins and leaves the queues of a worker's models; Redis may be away for a while."""

import asyncio
import logging
from typing import Protocol

log = logging.getLogger(__name__)

#: Pauses between tries to change what queues are listened to. Seconds; a Redis that is restarted is back by then.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Queues(Protocol):
    """The queues that the worker listens to, as its models come and go."""

    def listen(self, model: str) -> None: ...
    def ignore(self, model: str) -> None: ...


class QueueSwitch:
    """Changes what is listened to, from the engines' loop."""

    def __init__(self) -> None:
        #: Set once the worker takes messages; before, there is nothing to change.
        self.queues: Queues | None = None

    async def listen(self, model: str) -> bool:
        """Take a model's requests from its queue."""
        return await self._change(model, True)

    async def ignore(self, model: str) -> bool:
        """Take no more of them; False where that cannot be done."""
        return await self._change(model, False)

    async def _change(self, model: str, listen: bool) -> bool:
        if self.queues is None:
            return True
        change = self.queues.listen if listen else self.queues.ignore
        for pause in _PAUSES:
            try:
                await asyncio.to_thread(change, model)
                return True
            except Exception as error:
                log.warning("The model's queue cannot be changed now: %r", error, extra={"model": model})
                await asyncio.sleep(pause)
        # What comes through a queue that was not left is handed on; one that was not joined is tried at the next load.
        log.error("The model's queue could not be changed", extra={"model": model, "listen": listen})
        return False
