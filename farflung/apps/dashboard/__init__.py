"""`farflung dashboard`: pages in the browser about a swarm and its runs, and a chat with its models."""
