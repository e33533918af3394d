"""The pipeline below every loader: the order of an epoch, and the threads that fetch, verify, decode and gather ahead."""
