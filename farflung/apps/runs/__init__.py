"""Runs of any kind: a lead gives out seats, processes here and elsewhere sit on them, something is left at the end."""
