"""``python -m slimbit``."""

from slimbit.cli import main

main()
