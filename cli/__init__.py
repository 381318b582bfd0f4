"""What a person types: ``bin/cy-llm``. A client of the front door, and the commands that need the database."""
