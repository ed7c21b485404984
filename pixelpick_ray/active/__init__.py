"""The active-learning method as pure functions: scores, selection, oracles, metrics."""
