"""One training job and its child process."""
