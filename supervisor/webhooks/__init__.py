"""Delivers webhooks about ended jobs from the store's outbox; in the supervisor's process."""
