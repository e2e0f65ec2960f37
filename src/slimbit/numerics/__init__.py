"""Arithmetic: pure functions on tensors. One formula, one place."""
