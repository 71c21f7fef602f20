"""A run that lives in a store: what lies there, who may write it, and how it gets there."""
