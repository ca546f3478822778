"""What scripts/benchmark.py measures: a module for each kind of work, with a function for each engine that can do it.

Every function is called in a process of its own, as `family(kind, task)`, and returns its figures by name.
"""
