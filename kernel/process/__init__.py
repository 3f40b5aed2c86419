"""Processes: their table, mailboxes, and the programs (OS processes) that act for them."""
