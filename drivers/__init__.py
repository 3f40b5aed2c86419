"""The drivers: one file or folder per kind of device; each heavy library is imported in one."""
