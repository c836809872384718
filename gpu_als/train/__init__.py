"""Fits: the loop, where half-sweeps run, and what a fit is given and reports."""
