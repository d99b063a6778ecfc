"""Private names of the standard library that the program uses, each with the reason. Importable without torch."""

import pickle

# Python's unpickler written in Python, for files from unknown sources. The C unpickler allocates 16 bytes for each memo
# index up to the largest, and a file may use index 2^32.
PythonUnpickler = pickle._Unpickler
