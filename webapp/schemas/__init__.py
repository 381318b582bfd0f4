"""Bodies and chunks of the native interface, which HTTP, WebSocket and gRPC share."""
