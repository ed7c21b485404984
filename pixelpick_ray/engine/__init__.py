"""Training, evaluation and acquisition of one stage, on a `World` of any size."""
