"""Reports: a table beside the paper's numbers, figures, definitions and provenance."""
