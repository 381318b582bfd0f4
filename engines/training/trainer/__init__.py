"""The process that trains: trl and peft on one specification. Run as ``python -m engines.training.trainer``.

A process of its own, so that a crash, an out-of-memory kill or a cancel hurts nothing else.
"""
