"""The feature store: shards, atomic writes, receipts, feature sets, catalog, lazy views."""
