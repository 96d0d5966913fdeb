"""Data sets that are made rather than found."""
