"""HTTP: connections, routes, pages, and what they are made of."""
