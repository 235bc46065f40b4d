"""Everything that runs on a board: the standard library, numpy and one runtime.

The folder is shipped to boards by itself, so its modules import each other relatively, import nothing outside
it, and run on Python 3.9.
"""
