"""Readers: anything a user can say, turned into a Spec."""
