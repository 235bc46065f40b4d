"""Boards: what they are (`profile`), how they are reached (`transports`), what runs on them (`board`)."""
