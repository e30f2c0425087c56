"""Hours of faults: many connections to servers that die, hang, refuse and move."""
