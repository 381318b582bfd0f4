"""Names of queues and tasks. Front door and workers must agree on them."""

QUEUE_INFER = "gpu-infer"
QUEUE_TRAIN = "gpu-train"
QUEUE_BACKGROUND = "cpu-work"

#: Priorities of requests are 0 to this; higher is served first.
HIGHEST_PRIORITY = 9
#: What the broker calls them, lowest served first: one Redis list each.
PRIORITY_STEPS = list(range(HIGHEST_PRIORITY + 1))

TASK_GENERATE = "inference.generate"
TASK_TRAIN = "training.train"
TASK_BACKGROUND = "background.run"
#: The kind of the background job that runs all batches.
BATCHES = "batches"


def model_queue(model: str) -> str:
    """The queue of the workers that serve one model only."""
    return f"{QUEUE_INFER}.{model}"


def worker_queue(worker: str) -> str:
    """The queue of one worker alone, for requests that were asked to go there."""
    return f"{QUEUE_INFER}@{worker}"


def is_inference_queue(name: str) -> bool:
    return name == QUEUE_INFER or name.startswith(f"{QUEUE_INFER}.")
