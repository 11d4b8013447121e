"""A model: its layers, and its weights as a file holds them."""
