"""`farflung journal`: check, replay, show, compare, merge, revoke and export fine-tunes."""
