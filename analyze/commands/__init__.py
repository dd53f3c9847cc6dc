"""The commands of `directmap-analyze`, one module each."""
