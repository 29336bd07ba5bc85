"""Deciders: each pass takes one decision and leaves the rest alone."""
