"""Names of queues and tasks. Front door and workers must agree on them."""

QUEUE_INFER = "gpu-infer"
QUEUE_TRAIN = "gpu-train"

TASK_GENERATE = "inference.generate"


def model_queue(model: str) -> str:
    """The queue of the workers that serve one model only."""
    return f"{QUEUE_INFER}.{model}"


def is_inference_queue(name: str) -> bool:
    return name == QUEUE_INFER or name.startswith(f"{QUEUE_INFER}.")
