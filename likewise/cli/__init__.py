"""The command line: `main` lists the commands, the other files hold them."""
