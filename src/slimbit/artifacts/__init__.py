"""SHIP: a compressed network as a folder, and back."""
