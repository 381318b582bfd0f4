"""Computation: the engine contract, its implementations and the model registry.

Nothing here knows Flask, Celery, Redis or SQL. ``vllm`` and ``torch`` are imported
only by the modules that cannot do without them, so ``engines.registry`` loads on a
machine that has neither.
"""
