"""Atomic publication, URLs, redaction, untrusted bytes: the rim that every file passes."""
