"""The apps: in each folder routes, schemas and a service; `deps` and `body` are what their routes share."""
