"""Userland asks: it reaches the kernel through syscalls only."""
