"""Images, oracle labels and labelled pixels."""
