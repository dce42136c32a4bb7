"""What intro-pipe costs, measured beside others: `python -m benchmarks --quick` for a trial."""
