"""The engines of one worker: one asyncio loop in one thread, shared by all requests."""

import asyncio
import concurrent.futures
import logging
import secrets
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from engines.errors import EngineError
from settings import Settings
from store.redis import control
from store.redis.client import connect_async
from store.redis.control import Command
from store.token_log.publisher import Publisher
from tasks.worker.inference.active_requests import ActiveRequests, StopReason
from tasks.worker.models.hosted import DesiredModel
from tasks.worker.models.hosted_models import HostedModels
from tasks.worker.models.room import Room
from tasks.worker.models.swapper import Swapper
from tasks.worker.models.swapping import make_room_of, make_swapper

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How long the engines may take to free everything. Seconds.
_STOP_TIMEOUT_SECONDS = 30


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which vLLM's own server has too: a request costs a tenth less. It is there wherever vLLM is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class EngineHost:
    """Loads engines, runs requests on them, and counts what is in flight."""

    def __init__(
        self, settings: Settings, worker_name: str, swap: bool = False, visible_devices: str | None = None
    ) -> None:
        """``swap``: its models are loaded when they are asked for; ``visible_devices``: GPUs, None is all."""
        self.settings = settings
        self.worker_name = worker_name
        #: The name, and what tells this process from one that had the name before.
        self.instance_id = f"{worker_name}:{secrets.token_hex(4)}"
        self.active_requests = ActiveRequests()
        #: Wakes the heartbeat: a change of state, or a request that met a dead engine.
        self.state_changed = threading.Event()
        self.models = HostedModels(self.active_requests, self.state_changed, settings.models_root, on_demand=swap)
        self._room: Room | None = None
        self._swapper: Swapper | None = None
        if swap:
            self._room = make_room_of(settings, visible_devices, self.active_requests)
        self._desired: Mapping[str, DesiredModel] = {}
        #: Models that a front door of an older version took away; they come back with the next change of theirs.
        self._dismissed: set[str] = set()
        self._loaded_first = False
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._publisher: Publisher | None = None
        self._background: list[asyncio.Task[None]] = []
        self._loading: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Task[None]] = set()
        #: Set when the drain time is over: what still runs is handed over.
        self.releasing = False

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    @property
    def publisher(self) -> Publisher:
        if self._publisher is None:
            raise RuntimeError("the engine host was not started")
        return self._publisher

    def first_of(self, desired: Mapping[str, DesiredModel]) -> list[str]:
        """Return the ids of the models that are loaded at the start."""
        specs = [each.spec for each in desired.values()]
        return [spec.id for spec in specs] if self._room is None else self._room.at_start(specs)

    def start(self, desired: Mapping[str, DesiredModel]) -> concurrent.futures.Future[None]:
        """Begin to load the models; the future fails with what an engine failed with."""
        self._desired = desired
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._load(desired), self._loop)

    def reconcile(self, desired: Mapping[str, DesiredModel]) -> None:
        """Serve these models and no others, as soon as may be; from any thread."""
        self._loop.call_soon_threadsafe(self._reconcile, desired)

    def begin_swapping(self) -> None:
        """From now on, load models when they are asked for, where the worker does that."""
        if self._room is not None:
            self.run(self._begin_swapping(self._room))

    def begin_stopping(self) -> None:
        """The worker was told to stop: nothing is loaded any more. May be called by a signal handler."""
        # The consumer that would change its queues is about to end.
        self.models.queues.queues = None
        if self._swapper is not None:
            self._swapper.stop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def spawn(self, request: Coroutine[Any, Any, None]) -> None:
        """Run a request on the loop; called by the thread that takes messages."""
        self._loop.call_soon_threadsafe(self._begin, request)

    def drain(self) -> None:
        """Wait until no request is left. :meth:`release_all` bounds that: each is then released within seconds."""
        if self._thread.is_alive():
            self.run(self._idle())

    def release_all(self) -> None:
        """Let go of what still runs, so that other workers go on with it."""
        self.releasing = True
        self._loop.call_soon_threadsafe(self.active_requests.stop_all, StopReason.DRAIN)

    def stop(self) -> None:
        """Free the engines and end the loop's thread."""
        if not self._thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._unload(), self._loop).result(_STOP_TIMEOUT_SECONDS)
        except TimeoutError:
            log.error("The engines did not stop within %d seconds", _STOP_TIMEOUT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def dead_engines(self) -> list[str]:
        """Return the models whose engines have failed for good, each with how it ended."""
        return [f"{model} ({engine.describe_end()})" for model, engine in self.models.engines().items() if engine.dead]

    # On the loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _load(self, desired: Mapping[str, DesiredModel]) -> None:
        self._publisher = Publisher(connect_async(self.settings.redis_url), self.settings.stream_ttl)
        self._background = [
            asyncio.create_task(self._publisher.run()),
            asyncio.create_task(self.active_requests.watch(self._publisher.count_followers)),
            asyncio.create_task(control.listen(self.settings.redis_url, self._handle_command)),
        ]
        await self.models.load_first(desired, self.first_of(desired))
        self._loaded_first = True

    async def _begin_swapping(self, room: Room) -> None:
        client = self.publisher.client
        self._swapper = make_swapper(self.settings, self.instance_id, self.models, self.active_requests, room, client)
        self.models.spawn(self._swapper.run())

    def _begin(self, request: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _idle(self) -> None:
        while self._requests:
            await asyncio.wait(self._requests)

    def _handle_command(self, message: dict[str, str]) -> None:
        """Carry out a command that was sent to all workers."""
        command, target_id = message["command"], message["id"]
        if command == Command.STOP_MODEL:
            if message.get("worker", "") in ("", self.worker_name):
                self.models.force(target_id)
        elif command == Command.UNLOAD_MODEL:
            self._dismiss(target_id)
        elif command != Command.LOAD_ADAPTER:
            self.active_requests.handle_command(command, target_id)
        elif target_id in self.models.engines():
            task = self._loop.create_task(self.load_adapter(target_id, message.get("path", "")))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)

    async def load_adapter(self, model: str, path: str) -> None:
        """Load an adapter before anybody asks for it; ``path`` is relative to the adapters root."""
        fields = {"model": model, "adapter": path}
        engine = self.models.engine_of(model)
        if engine is None:
            return
        try:
            await engine.load_adapter(str(self.settings.adapters_root / path))
        except EngineError as error:
            # Whoever asks for it is told why.
            log.warning("An adapter cannot be loaded: %s", error, extra=fields)
        else:
            log.info("Adapter is loaded", extra=fields)

    def _dismiss(self, model: str) -> None:
        self._dismissed.add(model)
        if self._loaded_first:
            self.models.reconcile(self._without_dismissed(self._desired))

    def _without_dismissed(self, desired: Mapping[str, DesiredModel]) -> dict[str, DesiredModel]:
        return {model: each for model, each in desired.items() if model not in self._dismissed}

    def _reconcile(self, desired: Mapping[str, DesiredModel]) -> None:
        self._dismissed -= {model for model, each in desired.items() if each != self._desired.get(model)}
        self._desired = desired
        self.models.reconcile(self._without_dismissed(desired))

    async def _unload(self) -> None:
        await self.models.stop_all()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._publisher is not None:
            await self._publisher.client.aclose()
