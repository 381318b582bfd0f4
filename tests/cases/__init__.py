"""What people really send, have and run, each case on the running product: real vLLM, real processes."""
