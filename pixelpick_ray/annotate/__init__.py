"""People label pixels: a local web page, and books of answers in and out. Imports neither torch nor ray."""
