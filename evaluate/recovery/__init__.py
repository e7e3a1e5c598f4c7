"""An SAE beside the features that its activations were made from.

directions.py  decoder directions against known ones
firing.py      when latents fire against when features are on
"""
