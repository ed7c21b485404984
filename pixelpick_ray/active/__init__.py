"""The method as pure functions: scores, selection, oracle, metrics."""
