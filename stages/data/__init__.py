"""Images in: named data sets, folders and arrays, read by row range, and how to corrupt them."""
