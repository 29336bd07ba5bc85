"""Checkers that accept a schedule or name the two places that make it unsafe."""
