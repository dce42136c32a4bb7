"""The classifier f: networks, their weights and cards, their training, features and logits."""
