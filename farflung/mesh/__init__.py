"""Who is here, what they have and how far they are: signed records, the directory, reach estimates, limits."""
