"""What tests and bench both start: the stack, a PostgreSQL, clients, waiting."""
