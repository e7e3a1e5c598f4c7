"""Variants compared with each other: pure functions of cards, metrics and decoders.

treatments.py      what was done to a variant, and what it is compared with
seeds.py           means and spread over seeds
paired.py          a difference on the same seeds and text, with its interval; Holm's correction
comparisons.py     every treatment against its baseline on every metric
kinds.py           fixed, scheduled and learned lambdas against each other
matched_l0.py      whether sparsity is matched
frontiers.py       treatments trained at several sparsities, compared at the same L0
shared_latents.py  which latents two decoders share
stability.py       how alike the latents of several seeds are
cost.py            what a penalty costs
"""
