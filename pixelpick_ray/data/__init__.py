"""Data sets, prepared images, questions, answers and labelled pixels."""
