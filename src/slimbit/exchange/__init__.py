"""Translate: compressed networks as files that runtimes execute, the proof that they compute what was promised."""
