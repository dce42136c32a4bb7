"""The introspective network H: an MLP on gradient features, its training and its predictions."""
