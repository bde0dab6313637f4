"""Data sets in the formats that others use: one file a format, each a reader of clients for ``clients.from_clients``."""
