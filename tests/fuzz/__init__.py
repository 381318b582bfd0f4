"""What nobody thought of: bodies, frames, messages, files, variables and addresses made up by hypothesis.

``CY_FUZZ_CASES=2000 pytest tests/fuzz -n 2`` runs as many cases a test; ``CY_FUZZ_STACK=real`` asks real vLLM.
"""
