"""The sparse autoencoder as it is stored, and what its decoder looks like.

weights.py            its parameters; encode and decode
artefact.py           the folder of a trained SAE
geometry.py           the orthogonality penalty, and all cosines between decoder directions
stationary_lambda.py  where the descent of a learned lambda comes to rest, and how near it one is
"""
