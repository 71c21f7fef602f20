"""The classes that Ray Serve runs, each in a file of its own, so that only engines load torch."""
