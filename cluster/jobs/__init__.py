"""Jobs on a Ray cluster: what is uploaded, how they are submitted, followed, stopped and looked at."""
