"""The page: its static files, its routes and its sample clips."""
