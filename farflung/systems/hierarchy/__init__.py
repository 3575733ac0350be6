"""HALoS: workers, local parameter servers and a global one, all asynchronous (arXiv 2506.04531)."""
