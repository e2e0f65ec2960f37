"""LOOK once at a network: its layers, positions and MACs, whether it is a module or a file."""
