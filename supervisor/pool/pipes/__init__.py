"""The supervisor's ends of a worker's pipes: messages and output."""
