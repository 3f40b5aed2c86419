"""Drivers do: one file or folder per kind of device; each heavy library has one host."""
