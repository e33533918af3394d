"""Work that is not done twice: what was computed from what, under the CID of everything that decides the result."""
