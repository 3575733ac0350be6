"""Who is here, what they have and how far away they are."""
