"""Scheduling: which call runs next and on which device, and the loading and unloading of models."""
