"""Numbers for Prometheus: how several processes add theirs up, and how one serves its own."""
