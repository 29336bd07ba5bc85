"""How good `schedule best = auto` is: what it picks against the best of all that was measured. See `__main__`."""
