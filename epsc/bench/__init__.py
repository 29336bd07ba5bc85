"""Measuring: emitted programs beside layers written by hand. What runs on ranks needs torch, and no compiler."""
