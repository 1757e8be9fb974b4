"""The command line: `main` puts the verbs together; `terminal` and its neighbours print."""
