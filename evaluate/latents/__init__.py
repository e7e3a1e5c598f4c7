"""What there is to see of each latent: where it fires, how often and how strongly, which tokens it raises, its likes.

collect.py        one SAE over batches of text: counts, top contexts, a sample of firings
best.py           the best entries of each latent, ties broken by position
histogram.py      histograms of activations whose range is not known before
one_pass.py       all SAEs of a sweep over the same rows, read once
logit_effects.py  the tokens that a decoder direction raises and lowers most
neighbours.py     nearest latents in one SAE, matching latents between SAEs
spelling.py       tokens as text
data.py           all of it as arrays
"""
