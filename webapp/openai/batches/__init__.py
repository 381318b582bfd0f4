"""Batches: OpenAI's calls for them, and the process that runs them (``python -m webapp.openai.batches``)."""
