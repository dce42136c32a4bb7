"""The training rows that support and that oppose a prediction."""
