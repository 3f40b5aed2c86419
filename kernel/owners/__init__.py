"""The data of each owner, as one object."""
