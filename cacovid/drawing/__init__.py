"""Pictures of one clip: what was kept, and what the policy saw."""
