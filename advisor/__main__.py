"""`python -m advisor` is `advise`."""

import sys

from advisor.ground.errors import AdviseError


def main() -> None:
    """Run the command; the flags are made of shipped catalogues, which may be at fault."""
    try:
        from advisor.cli import main as run
    except AdviseError as error:
        print(error.text(), file=sys.stderr)
        sys.exit(error.exit_code)
    run()


if __name__ == "__main__":
    main()
