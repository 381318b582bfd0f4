"""The gRPC face: the same requests, limits and streams as HTTP, in a process of its own."""
