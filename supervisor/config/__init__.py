"""Options: their kinds, settings and sources, and the parsing of HANDLER."""
