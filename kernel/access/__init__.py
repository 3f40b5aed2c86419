"""Identity and permissions: users, keys, rules, and the decision whether a caller may do something.
Casbin is imported here only. It must not know what a syscall does.
"""
