"""Faults on purpose: a stack of real processes, what is broken of it, a judge of what is left."""
