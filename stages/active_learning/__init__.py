"""Active learning: query strategies, training, runs of rounds, and requests for labels."""
