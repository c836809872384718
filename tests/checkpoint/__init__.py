"""Fits that are saved, stopped and gone on with find what an uninterrupted one does, to the bit."""
