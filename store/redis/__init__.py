"""What processes share in Redis, but for the token log."""
