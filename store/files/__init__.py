"""Files that clients uploaded, or that were made for them: bytes in a folder, what they are in SQL."""
