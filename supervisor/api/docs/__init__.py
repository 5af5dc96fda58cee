"""The OpenAPI description and the documentation page, made from the routes and the types of the public JSON."""
