"""Continuous integration and testing of a bundle: data schema, skew, features, acceptance, robustness."""
