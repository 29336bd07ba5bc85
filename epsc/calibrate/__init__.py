"""Measure a machine for a cluster profile: emitted programs step by step and together, and what no step shows."""
