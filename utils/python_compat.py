"""Private names of the standard library that the program needs, each with its reason. Importable without torch."""

import pickle

# The unpickler in Python, for files that nobody vouches for. The one in C allocates 16 bytes for each index of its memo
# up to the largest, and a file may name 2^32.
PythonUnpickler = pickle._Unpickler
