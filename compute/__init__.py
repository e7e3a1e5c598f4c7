"""Where and how something is computed, shared by the stages.

device.py        which device, and its number format
memory.py        how much memory a stage may take
progress.py      phases and counts, said while they happen
program.py       how a command ends: its message and its exit code
stop.py          requests to stop, by a signal or a file
code_version.py  versions of code that decides results, and whether it was edited since
software.py      the code and packages of this process, compared with those that planned its work
cluster.py       tasks on the workers of a Dask cluster
"""
