"""OPEN: what a command line or a file names: networks, their weights, the data they are for."""
