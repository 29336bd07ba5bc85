"""Reading a layer from a torch module: capture it, find its experts, recognise what the language can say."""
