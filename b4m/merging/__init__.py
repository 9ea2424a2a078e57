"""Two adapters become one: the walk over layers, masks and what they are learned from."""
