"""Doors for people: the command line, the HTTP interface and the wiring that joins the layers."""
