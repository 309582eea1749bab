"""Retraining: a champion's successor, once a key; going back to an earlier one; using it."""
