"""Commands over many files: numbered parts, done by any number of workers that may die.

A *plan* cuts the input files into numbered *parts*. A *worker* is a process that takes a part,
computes its rows, and renames the finished file into the folder: the final name is the commit, and
nothing else counts. A *claim* says that a worker has a part in hand; a lost claim costs time, but
never changes a result. A *receipt* says who computed a part, and when.
"""
