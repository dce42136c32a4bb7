"""Benchmarks of intro-pipe and comparable programs; try `python -m benchmarks --quick`."""
