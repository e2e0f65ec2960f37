"""``slimbit`` and ``python -m slimbit``."""

import sys


def main() -> None:
    """Run the command line; an interruption while it is still being loaded is as quiet as one later."""
    try:
        from slimbit.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
