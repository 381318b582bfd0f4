"""Tenants: whose a thing is."""

#: The tenant of keys in the environment, and of everything made before there were tenants.
DEFAULT_TENANT = "default"
