"""Engines on vLLM. Only here is vLLM imported."""
