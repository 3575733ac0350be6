"""`python -m farflung` is the command `farflung`."""

from farflung.apps.cli import main

main()
