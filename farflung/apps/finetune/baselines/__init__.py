"""Other ways to tune the same model on the same data, on one machine: what one byte a measurement is measured by."""
