"""holdfast: an ML cluster in which every dataset, run, model and index is a CID."""

__version__ = "0.1.0"
