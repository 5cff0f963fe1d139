"""The command line of the admin plane, a module per group of commands."""
