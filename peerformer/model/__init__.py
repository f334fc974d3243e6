"""The transformer, its key-value cache, and its form on disk."""
