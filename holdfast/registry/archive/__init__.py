"""Names with everything that they stand for, in one CAR: out of one registry, and into another, offline, with the same CIDs."""
