"""Trains all variants of a study together: one batch from the store, one stacked step."""
