"""Beltline's own figures: `make bench`. JSON lines, each with commit, machine and settings; never a test, because timings are noisy."""
