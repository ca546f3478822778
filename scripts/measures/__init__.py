"""What scripts/benchmark.py measures: a module for each kind of work, a function for each engine.

Every function is called in a process of its own, as `family(kind, task)`, and returns its figures
by name.
"""
