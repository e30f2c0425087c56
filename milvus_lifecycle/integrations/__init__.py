"""Integrations with other packages; each is imported only when it is used."""
