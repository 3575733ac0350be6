"""`farflung plan`: sites, machines, links and a goal become a ranked table of what the shipping code would do there."""
