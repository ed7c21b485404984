"""Hyperparameter search: what is tried, what is known of it, and what is chosen. Imports neither torch nor ray."""
