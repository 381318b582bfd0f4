"""The queues of a worker's models, listened to and left while it runs."""

from typing import Any

from tasks.broker.names import QUEUE_INFER, model_queue
from tasks.worker.celery_internals import ignore_queue, listen_to_queue


class ModelQueues:
    """A model that is loaded later is asked through a queue of its own: others at the common queue do not have it."""

    def __init__(self, app: Any, worker_name: str, common_model: str | None) -> None:
        """``common_model`` is the one that the common queue is for, where the worker was started without names."""
        self._app = app
        self._worker_name = worker_name
        self._common_model = common_model

    def listen(self, model: str) -> None:
        """Take the model's requests from now on."""
        listen_to_queue(self._app, self._worker_name, self._queue(model))

    def ignore(self, model: str) -> None:
        """Take no more of them; what waits is for other workers."""
        ignore_queue(self._app, self._worker_name, self._queue(model))

    def choose(self, model: str, listen: bool) -> None:
        """As :meth:`listen` and :meth:`ignore`, before the worker takes its first message."""
        queues = self._app.amqp.queues
        if listen:
            queues.select_add(self._queue(model)).no_ack = True
        else:
            queues.deselect(self._queue(model))

    def names(self) -> list[str]:
        """The queues that are listened to now."""
        return list(self._app.amqp.queues.consume_from)

    def _queue(self, model: str) -> str:
        return QUEUE_INFER if model == self._common_model else model_queue(model)
