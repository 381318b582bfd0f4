"""The queue. ``celery -A tasks`` finds the application in ``tasks.celery``; the sending side is ``tasks.broker``."""
