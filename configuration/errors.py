"""A start that cannot go on because of what it was configured with."""


class ConfigurationError(Exception):
    """One line: the variable, what is wrong with its value, what is allowed."""
