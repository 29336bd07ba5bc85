"""What a comparison can be asked for, by name. No torch."""

from __future__ import annotations

WORKLOADS = {
    "random": "normal inputs, and whatever experts they choose",
    "balanced": "every expert gets as many rows as any other",
    "zipf": "expert i of a random order is wanted with probability 1/i",
    "hot-expert": "every token chooses expert 0, and others at random",
    "hot-rank": "every token chooses experts of rank 0 only",
    "empty-rank": "no token chooses an expert of the last rank",
    "burst": "random, but three small loads (an eighth of the tokens) come before each full one",
}
FOR_SEVERAL_RANKS = ("hot-rank", "empty-rank")

TOKENS = (1024, 4096, 8192)
"""Tokens per rank, where nobody says how many."""

BY_HAND = ("hand-a2a", "hand-gather", "hand-no-ep")
"""The layers written by hand."""
