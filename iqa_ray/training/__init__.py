"""Classifiers: backbones, the training loop, and its run on Ray Train."""
