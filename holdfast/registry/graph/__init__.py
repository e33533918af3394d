"""What is made of what: the graph of the records, in both directions, as a value, as text and as a picture."""
