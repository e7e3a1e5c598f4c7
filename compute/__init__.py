"""Where and how something is computed, shared by the stages.

device.py   which device, and its number format
memory.py   how much memory a stage may take
stop.py     requests to stop, by a signal or a file
cluster.py  tasks on the workers of a Dask cluster
"""
