"""Runs and evaluations as one HTML file that needs nothing else: ``cacovid report``."""
