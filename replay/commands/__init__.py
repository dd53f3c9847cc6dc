"""The commands of `directmap-replay`, one module each."""
