"""All that depends on gunicorn: the only seam to it."""
