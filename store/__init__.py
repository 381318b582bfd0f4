"""What the front door and the workers share, in Redis and SQL. Knows no Flask and no Celery."""
