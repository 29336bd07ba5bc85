"""The nouns: what was said, what was meant, what was decided, what was written."""
