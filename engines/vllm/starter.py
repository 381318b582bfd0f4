"""The thread in which engines are started, so that the others of a worker go on meanwhile.

One thread, which lives as long as the worker: an engine core ends with the thread that started it
(``engines.vllm.core_process``). A daemon, unlike a pool's: a worker that is told to stop while an engine loads must not
wait for that.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class StarterThread:
    """Runs one call after the other."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what ``function`` returned in the thread; raises what it raised."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(set_value: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                set_value(value)

        def call() -> None:
            try:
                value = function(*args)
            except BaseException as error:
                loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                loop.call_soon_threadsafe(settle, done.set_result, value)

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine-start", daemon=True)
            self._thread.start()
        self._calls.put(call)
        return await done

    def _run(self) -> None:
        while True:
            self._calls.get()()
