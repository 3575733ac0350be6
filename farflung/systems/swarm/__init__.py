"""A model answered by a chain of machines that each hold some of its blocks (PETALS)."""
