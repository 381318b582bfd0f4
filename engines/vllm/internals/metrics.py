"""vLLM's metrics, taken out of the process's common registry."""

from prometheus_client import REGISTRY, CollectorRegistry


def take_metrics() -> CollectorRegistry:
    """Return the metrics that the engine registered that was made last, for its model alone.

    vLLM drops those of the engine before from the common registry when it makes the next one
    (``vllm.v1.metrics.prometheus.unregister_vllm_metrics``, which goes by the same names): it knows one engine to a
    process. Taken out, they stay.
    """
    taken = CollectorRegistry()
    for collector in list(REGISTRY._collector_to_names):
        if str(getattr(collector, "_name", "")).startswith("vllm:"):
            REGISTRY.unregister(collector)
            taken.register(collector)
    return taken
