"""Networks by name: one source a file, imported when it is used."""
