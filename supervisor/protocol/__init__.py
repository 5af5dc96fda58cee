"""The public JSON: requests, responses, views, server-sent events."""
