"""What front door and trainer both need to know of a training job. No torch here."""
