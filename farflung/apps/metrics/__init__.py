"""What every role tells Prometheus."""
