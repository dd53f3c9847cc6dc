"""Tests of directmap: unit, property, real kernels in a VM, benchmarks."""
