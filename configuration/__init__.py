"""How values reach a process: the environment, addresses of Redis, of the database and to listen on. Parsed once."""
