"""SHOW: tables, figures and pages from records, without torch."""
