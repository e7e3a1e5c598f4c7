"""Benchmarks of trained SAEs against each other, and the report on them."""
