"""Benchmarks: every claim is measured against its baseline in the same run."""
