"""Predictions of the replay, held against what real kernels did: `make validate`."""
