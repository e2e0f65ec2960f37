"""Nouns: frozen data without torch. A record is made in one room and only read elsewhere."""
