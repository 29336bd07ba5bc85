"""What a Python program calls: trace a module, compile it, swap the blocks of a model."""
