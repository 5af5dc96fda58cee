"""The options: their kinds, the settings, where they come from, and how a handler is named."""
