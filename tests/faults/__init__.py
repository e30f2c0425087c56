"""Faults with real servers and real processes: `pytest -m long`."""
