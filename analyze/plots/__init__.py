"""Pictures of a trace, from plain arrays."""
