"""The Casbin model and the rules of a fresh machine."""
