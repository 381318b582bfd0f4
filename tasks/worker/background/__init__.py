"""Work that no client waits for, on the queue ``cpu-work``: batches, booking, expiry, downloads, evaluations."""
