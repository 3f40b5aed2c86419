"""The kernel decides. It owns processes, memory, scheduling, policy and journal.

It knows no vendor and no screen. Start with boot.py.
"""
