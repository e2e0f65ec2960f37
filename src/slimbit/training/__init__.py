"""LEARN: signal and noise while a network trains, and the training itself."""
