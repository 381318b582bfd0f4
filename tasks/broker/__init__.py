"""The sending side: queues, messages, submission. Loads no Celery; the only part that services may import."""
