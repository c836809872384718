"""Shards without waiting for the disk: what is synced, and when, other tests look at."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def quick_disk():
    """Let writers not wait until each of many small files is on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
