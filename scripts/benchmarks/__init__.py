"""Benchmarks, and the implementations that they compare."""
