"""What a node serves over HTTP: the Trustless Gateway, and files for browsers."""
