"""f beside heads on the cells of a feature set: metrics, bins, resamples, cards of results."""
