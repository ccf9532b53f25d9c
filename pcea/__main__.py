"""`python -m pcea` and the `pcea` command."""

from pcea.cli import main

if __name__ == "__main__":
    main()
