"""Do what a plan says, on a copy of the network."""
