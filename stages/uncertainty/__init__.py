"""Predictive uncertainty of f, heads, Laplace approximations, MC dropout and ensembles."""
