"""Data sets: read, recognised, measured. No torch here."""
