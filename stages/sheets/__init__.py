"""Pictures of rows: colour maps, overlays, and contact sheets as HTML pages and PNG files."""
