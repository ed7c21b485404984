"""Hyperparameter search: design, samples, journal and outcome. Imports neither torch nor ray."""
