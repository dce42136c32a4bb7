"""Out-of-distribution detection: detectors, and how well f and heads separate two data sets."""
