"""`python -m farflung` is the command `farflung`."""

from farflung.apps.cli import main

if __name__ == "__main__":  # processes that a plan is tried in read this file too
    main()
