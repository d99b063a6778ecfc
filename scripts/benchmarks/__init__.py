"""Benchmarks of scripts/bench.py, and the training steps that they compare."""
