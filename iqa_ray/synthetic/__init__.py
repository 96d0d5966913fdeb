"""A made-up data set."""
