"""The demonstration: train a small model here, serve it by several processes, kill one, compare the words."""
