"""The HTTP side: OpenAI's forms, keys, limits, metrics and the page."""
