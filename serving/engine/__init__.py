"""Vision tower, policies and language model of one replica; no ray, so that it runs and is tested anywhere."""
