"""Annotation by people: a local web page, and import and export of answers. Imports neither torch nor ray."""
