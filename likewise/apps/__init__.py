"""The apps, a folder each; `registry` has their rows, and the other modules are shared by their routes."""
