"""The lineage as a picture: what each box says, where it stands, and drawing it as SVG or PNG."""
