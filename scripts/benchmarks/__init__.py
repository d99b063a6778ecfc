"""The benchmarks of bench.py and their contenders."""
