"""The published systems, one folder each; none of them knows another."""
