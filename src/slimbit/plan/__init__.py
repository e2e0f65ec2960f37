"""Decide: which steps, which filters stay."""
