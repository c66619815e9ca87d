"""The command line: `main` lists the verbs, the other files hold them."""
