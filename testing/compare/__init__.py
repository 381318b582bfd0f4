"""This system beside another one, as ``bench.compare`` measures it."""
