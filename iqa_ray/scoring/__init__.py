"""Scoring images with metrics, and the tables of scores."""
