"""Layers of published models, as `.eps` files that every install carries."""
