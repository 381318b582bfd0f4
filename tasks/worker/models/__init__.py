"""The models of one worker: what it shall serve, what it has loaded, and what gives way to what."""
