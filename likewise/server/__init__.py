"""The HTTP server: the list of routers, what surrounds every request, and the process that serves."""
