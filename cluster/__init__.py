"""Composes actors and learner into training, and holds the command line."""
