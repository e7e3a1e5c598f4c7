"""Variants compared with each other: pure functions of cards, metrics and decoders.

treatments.py      what was done to a variant, and what it is compared with
seeds.py           means and spread over seeds
uncertainty.py     whether two values differ by more than is uncertain
matched_l0.py      whether sparsity is matched
shared_latents.py  which latents two decoders share
"""
