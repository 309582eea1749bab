"""Retraining: train a successor of the champion model and promote it if the gate allows."""
