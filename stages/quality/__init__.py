"""Image quality against a reference: UNIQUE, its introspective readings, and other measures."""
