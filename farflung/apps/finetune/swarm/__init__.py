"""Fine-tuning through a chain of block servers: a model that nobody holds whole, parameters that the client keeps."""
