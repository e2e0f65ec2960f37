"""EXPLORE, REMEMBER, CHOOSE: the frontier of a network, kept in a run that can be continued at any time."""
