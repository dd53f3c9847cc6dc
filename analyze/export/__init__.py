"""A trace for other programs."""
