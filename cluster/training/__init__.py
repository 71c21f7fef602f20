"""The training controller: RLlib's Algorithm, what it gives out when, and the run on disk."""
