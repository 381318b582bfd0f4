"""Celery's configuration. ``docs/architecture.md`` gives the reasons at length."""

from configuration.redis_address import parse_redis
from settings import Settings
from tasks.broker.names import PRIORITY_STEPS

_settings = Settings.from_env_or_exit()
_redis = parse_redis(_settings.redis_url)

broker_url = _redis.broker_url
# What TLS verifies is said, never left to a library's default: kombu's is nothing.
broker_use_ssl = _redis.tls_options() or None
broker_connection_retry_on_startup = True
broker_connection_timeout = 2
# A Redis that turns into a replica for a moment refuses commands; the worker tries again, its model loaded.
broker_channel_error_retry = True
broker_connection_max_retries = None
# Without a socket timeout, a half-open connection would hang a publish for good. A
# worker's longest blocking read (BRPOP) takes one second.
broker_transport_options = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 1.0,
    "priority_steps": PRIORITY_STEPS,
    # Within a priority, queues are asked in turn.
    "queue_order_strategy": "round_robin",
    "global_keyprefix": _settings.redis_prefix,
    **_redis.broker_options,
}
# The front door answers 503 at once instead of trying again behind a client's back.
task_publish_retry = False

# JSON only: a message must never be able to name code.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]

# Results travel through the token log, not through Celery.
task_ignore_result = True

# A task is acknowledged when it is taken: redelivery by the broker would run a request
# twice. The token log and its attempts decide who continues.
task_acks_late = False
worker_disable_prefetch = True

# A request that names no priority has the lowest; see ``tasks.broker.submit``.
task_default_priority = 9
include = ["tasks.worker.inference.task", "tasks.worker.training.task", "tasks.worker.background.task"]
task_default_queue = "gpu-infer"
# Nothing is sent until somebody watches: Flower switches the events on when it starts, and
# again every few seconds. With them a request costs a worker about 1 ms of CPU more.
worker_send_task_events = False
task_send_sent_event = False
worker_hijack_root_logger = False
worker_redirect_stdouts = False
