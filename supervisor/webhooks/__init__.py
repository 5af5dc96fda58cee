"""Tells receivers by HTTP how jobs ended, from the store's outbox; in the supervisor's process."""
