"""OpenAI's routes, forwarded to the handler as jobs."""
