"""``/api/v1/health``: whether requests can be served, and in detail why not."""

from typing import Any

from flask import Blueprint, Response, jsonify

from services.health import HealthReport
from store.sql.tables import now
from timestamps import duration, timestamp
from webapp.http.current import services

bp = Blueprint("health", __name__, url_prefix="/api/v1")


@bp.get("/health")
def health() -> Response:
    """UP when Redis answers and at least one worker is ready; else DOWN, with status 503."""
    report = services().health.report()
    return _respond(report, {name: component["status"] for name, component in _components(report).items()})


@bp.get("/health/details")
def details() -> Response:
    """The same, with workers, queue and Redis latency."""
    report = services().health.report()
    return _respond(report, _components(report))


def _respond(report: HealthReport, components: dict[str, Any]) -> Response:
    response = jsonify({"status": _word(report.up), "components": components, "timestamp": timestamp(now())})
    response.status_code = 200 if report.up else 503
    return response


def _components(report: HealthReport) -> dict[str, Any]:
    gateway = {"startTime": timestamp(report.started_at), "uptime": duration(now() - report.started_at)}
    redis = {"latencyMs": report.redis_latency_ms, "connected": report.redis_up}
    return {
        "gateway": {"status": "UP", "details": gateway},
        "coordinator": {"status": _word(report.up), "details": _coordinator(report) if report.redis_up else {}},
        "redis": {"status": _word(report.redis_up), "details": redis},
    }


def _coordinator(report: HealthReport) -> dict[str, Any]:
    total, healthy = report.workers_total, report.workers_healthy
    return {
        "workers": {"total": total, "healthy": healthy, "unhealthy": total - healthy},
        "queue": {"pendingTasks": report.pending_tasks, "maxSize": report.max_queue_size},
        "engines": [
            {
                "worker": load.worker,
                "state": load.state,
                "model": load.model,
                "engine": load.engine,
                "inFlight": load.in_flight,
                "running": load.running,
                "waiting": load.waiting,
                "peakRunning": load.peak_running,
            }
            for load in report.engines
        ],
    }


def _word(up: bool) -> str:
    return "UP" if up else "DOWN"
