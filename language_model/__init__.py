"""Language models: from a name to a checked local checkpoint, and the small one that is embedded in this repository."""
