"""The trained compressor behind Ray Serve."""
