"""Visual explanations of predictions: which places of an image speak for a class, or against it."""
