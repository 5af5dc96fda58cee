"""The slots' pure state machine."""
