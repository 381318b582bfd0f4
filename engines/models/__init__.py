"""The models that come along."""
