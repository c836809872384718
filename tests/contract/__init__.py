"""The contract of ``implicit``'s ALS, rule by rule: alone, and beside ``implicit`` itself.

A test's name is the rule. Tests that take ``use_gpu`` run on NumPy, on the CuPy backend over the
stand-in of fake_cupy.py, and, with ``pytest -m gpu``, on a GPU. Tests that take ``theirs`` fit
``implicit`` as well, on the CPU, from the same initial factors.
"""
