"""Speed beside peers: one command each."""
