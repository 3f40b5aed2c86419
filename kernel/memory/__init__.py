"""The context window as memory: pages, what a call sees of them, and how they are found again."""
