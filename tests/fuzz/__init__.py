"""Damaged annotation files, results files and images, and what must come of them: a result, or one clear error.

``mutate.py`` makes file number N of a seed, ``targets.py`` hands it to everything that reads such files, ``shards.py``
does so in processes that may die of it. ``python -m tests.fuzz --files 100000 --seed 0`` runs many, and with ``--only``
one of them again, in the same process.
"""
