"""Who explains latents and predicts from the explanations: a model behind an address, or the lexical baseline.

settings.py  which judge, as params.yaml has it
judge.py     what a judge does, and its errors
limits.py    what it may cost
budget.py    what it has cost so far
cache.py     its replies on disk
client.py    any server of OpenAI's protocol
lexical.py   the offline baseline
"""
