"""`python -m advisor` is `advise`."""

import sys

from advisor.ground.errors import AdviseError, Stopped


def main() -> None:
    """Run the command; the flags are made of shipped catalogues, which may be at fault."""
    try:
        from advisor.cli import main as run
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        sys.exit(error.exit_code)
    try:
        run()
    except SystemExit as left:
        if left.code == Stopped.exit_code:
            from advisor.ground.signals import ignore_further_stops

            ignore_further_stops()  # terminals and schedulers send several
        raise


if __name__ == "__main__":
    main()
