"""The contract between kernel, drivers and userland.

The syscall table, the values that cross the socket, errors, wire format, limits, paths, and the
files that both sides read. Everyone may import it. It imports the standard library and msgpack
only.
"""
