"""``/api/v1/health``: whether requests can be served, and in detail why not."""

import time
from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, jsonify
from redis.exceptions import RedisError

from store.models import now
from store.presence import Fleet
from tasks import client, queues
from webapp.services import STARTED, Services, services

bp = Blueprint("health", __name__, url_prefix="/api/v1")


@bp.get("/health")
def health() -> Response:
    """UP when Redis answers and at least one worker is ready; else DOWN, with status 503."""
    components = _components(services())
    summary = {name: component["status"] for name, component in components.items()}
    return _respond(summary, components)


@bp.get("/health/details")
def details() -> Response:
    """The same, with workers, queue and Redis latency."""
    components = _components(services())
    return _respond(components, components)


def _respond(shown: dict[str, Any], components: dict[str, Any]) -> Response:
    up = all(component["status"] == "UP" for component in components.values())
    response = jsonify({"status": _word(up), "components": shown, "timestamp": _timestamp()})
    response.status_code = 200 if up else 503
    return response


def summary(own: Services) -> dict[str, str]:
    """The same in one level of names, for gRPC. Raises ``RedisError``."""
    fleet = own.presence.fleet(fresh=True)
    told = _coordinator(fleet, queues.pending(own.redis, client.all_queues(fleet)), own.settings.max_queue_size)
    flat = {f"workers_{name}": number for name, number in told["workers"].items()}
    running = sum(engine["running"] for engine in told["engines"])
    return {
        name: str(value)
        for name, value in {**flat, "queue_pending": told["queue"]["pendingTasks"], "running": running}.items()
    }


def _components(own: Services) -> dict[str, Any]:
    gateway = {"startTime": _timestamp(STARTED), "uptime": _duration(now() - STARTED)}
    latency = _redis_latency_ms(own)
    coordinator = None
    if latency is not None:
        try:
            fleet = own.presence.fleet(fresh=True)
            coordinator = _coordinator(
                fleet, queues.pending(own.redis, client.all_queues(fleet)), own.settings.max_queue_size
            )
        except RedisError:
            latency = None
    ready = coordinator is not None and coordinator["workers"]["healthy"] > 0
    return {
        "gateway": {"status": "UP", "details": gateway},
        "coordinator": {"status": _word(ready), "details": coordinator or {}},
        "redis": {
            "status": _word(latency is not None),
            "details": {"latencyMs": latency, "connected": latency is not None},
        },
    }


def _coordinator(fleet: Fleet, pending: int, max_size: int) -> dict[str, Any]:
    healthy = [worker for worker in fleet.living if worker.ready]
    total = len(fleet.living) + len(fleet.lost)
    return {
        "workers": {"total": total, "healthy": len(healthy), "unhealthy": total - len(healthy)},
        "queue": {"pendingTasks": pending, "maxSize": max_size},
        "engines": [
            {
                "worker": worker.name,
                "state": worker.state,
                "model": model,
                "engine": info.get("engine"),
                "inFlight": worker.in_flight,
                "running": info.get("running", 0),
                "waiting": info.get("waiting", 0),
                "peakRunning": info.get("peak_running", 0),
            }
            for worker in fleet.living
            for model, info in worker.models.items()
        ],
    }


def _redis_latency_ms(own: Services) -> float | None:
    started = time.perf_counter()
    try:
        own.redis.ping()
    except (RedisError, OSError):
        return None
    return round((time.perf_counter() - started) * 1000, 3)


def _word(up: bool) -> str:
    return "UP" if up else "DOWN"


def _timestamp(moment: Any = None) -> str:
    return (moment or now()).strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(elapsed: timedelta) -> str:
    """As Go writes it: ``1h0m0s``."""
    minutes, seconds = divmod(int(elapsed.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s"
