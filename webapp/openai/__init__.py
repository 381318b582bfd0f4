"""The OpenAI-compatible API, ``/v1``: a thin relay to vLLM's own implementation in the worker."""
