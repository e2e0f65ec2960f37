"""COMPRESS: one network, one decision: prepare it, quantize it, prune it, keep what comes out."""
