"""Connections: listeners, TLS, authentication, flow control, the protocol of one connection.

It must not know what a syscall does.
"""
