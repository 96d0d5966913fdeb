"""Experiments that ask whether the selection helps."""
